"""Trains on one device and on two: python distributed_training.py FILE."""

import contextlib
import os
import sys

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"  # Read by JAX.

import keras
import numpy as np

import keras_robust as kr

BACKEND = keras.backend.backend()
SYNCHRONIZED = BACKEND == "tensorflow"  # On JAX, one program computes the whole batch.
if BACKEND == "tensorflow":
    import tensorflow as tf


class Recorder(kr.losses.AdversarialTraining):
    """Records the adversarial images of each step. Requires eager mode."""

    def prepare(self, model, x, y, seed):
        x_adv, prepared = super().prepare(model, x, y, seed)
        seen.append(np.asarray(x_adv))
        return x_adv, prepared


seen = []


def set_up():
    """Creates two logical CPUs. Must be called before any computation."""
    if BACKEND == "tensorflow":
        tf.config.set_logical_device_configuration(
            tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
        )


def two_devices():
    """Returns a context in which models are created for and trained on two logical CPUs."""
    if BACKEND == "jax":
        keras.distribution.set_distribution(keras.distribution.DataParallel())
        assert keras.distribution.distribution().device_mesh.shape == (2,)
        return contextlib.nullcontext()
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    assert strategy.num_replicas_in_sync == 2
    return strategy.scope()


def train(loss, x, y, epochs=2, batch_norm=False, **arguments):
    """Trains in batches of 32. Returns the weights and the history."""
    keras.utils.set_random_seed(1)
    base = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Flatten(),
            keras.layers.Dense(16, activation="tanh"),
            *([keras.layers.BatchNormalization(synchronized=SYNCHRONIZED)] if batch_norm else []),
            keras.layers.Dense(10),
        ]
    )
    robust = kr.RobustModel(base)
    robust.compile(keras.optimizers.SGD(0.2), loss, metrics=["accuracy"], **arguments)
    history = robust.fit(
        x, y, batch_size=32, epochs=epochs, shuffle=False, verbose=0, validation_data=(x, y)
    )
    return [*robust.get_weights(), *history.history.values()]


def main(file):
    rng = np.random.default_rng(0)
    x, y = rng.random((64, 8, 8, 1), "float32"), rng.integers(0, 10, 64)
    attack = kr.attacks.PGD(epsilon=2.0, norm="l2", num_steps=2, random_start=False)
    loss = kr.losses.AdversarialTraining(attack)
    # 16 images twice, one half for each replica. Replicas wait for each other at a synchronized
    # batch norm while the loss records the layers' outputs. A lock held there would be a deadlock.
    twice = np.tile(x[:16], (2, 1, 1, 1)), np.tile(y[:16], 2)
    disparity = kr.losses.LatentDisparity(attack, weight=0.5)
    one = train(loss, x, y) + train(disparity, x[:16], y[:16], batch_norm=True)
    with two_devices():
        two = train(loss, x, y) + train(disparity, *twice, batch_norm=True)
        if BACKEND == "tensorflow":
            attack = kr.attacks.PGD(epsilon=0.1, step_size=1e-9, num_steps=1)
            train(Recorder(attack), *twice, epochs=1, run_eagerly=True)
    results = {f"one_{i}": value for i, value in enumerate(one)}
    results |= {f"two_{i}": value for i, value in enumerate(two)}
    np.savez(file, **results, seen=np.array(seen))


if __name__ == "__main__":
    set_up()
    main(sys.argv[1])
