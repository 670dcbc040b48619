"""Trains with backups, and may kill itself: interrupted_training.py FOLDER [KILL_AT_STEP]."""

import os
import pathlib
import signal
import sys

import keras
import numpy as np

import keras_robust as kr


class Kill(keras.callbacks.Callback):
    """Kills the process after a given number of steps."""

    def __init__(self, step):
        super().__init__()
        self.step = step
        self.seen = 0

    def on_train_batch_end(self, batch, logs=None):
        self.seen += 1
        if self.seen == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def train(folder, kill_at_step=None):
    """Trains four epochs of two steps. Returns the model and the number of epochs it ran."""
    keras.utils.set_random_seed(1)
    rng = np.random.default_rng(0)
    x, y = rng.random((64, 8, 8, 1), "float32"), rng.integers(0, 10, 64)
    base = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Flatten(),
            keras.layers.Dense(10, kernel_initializer="zeros"),
        ]
    )
    robust = kr.RobustModel(base)
    attack = kr.attacks.PGD(epsilon=2.0, norm="l2", num_steps=2)
    robust.compile(keras.optimizers.Adam(0.05), kr.losses.AdversarialTraining(attack))
    callbacks = [keras.callbacks.BackupAndRestore(pathlib.Path(folder) / "backup")]
    if kill_at_step:
        callbacks.append(Kill(kill_at_step))
    history = robust.fit(
        x, y, batch_size=32, epochs=4, shuffle=False, verbose=0, callbacks=callbacks
    )
    return robust, len(history.epoch)


if __name__ == "__main__":
    folder = pathlib.Path(sys.argv[1])
    robust, num_epochs = train(folder, *map(int, sys.argv[2:]))
    np.savez(folder / "weights.npz", *robust.get_weights(), num_epochs=num_epochs)
