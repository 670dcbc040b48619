"""Training steps agree with the same steps written by hand."""

import keras
import numpy as np
import pytest
from keras import ops

import keras_robust as kr
from keras_robust import backend

CROSS_ENTROPY = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def step_seed(step):
    """Returns the seed of one step of a model with `seed=3`."""
    return backend.fold_in(backend.make_seed(3), step)


@pytest.mark.slow_on_jax
@pytest.mark.parametrize("random_start", [False, True])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_adversarial_training_is_an_attack_and_an_ordinary_step(
    make_base, make_robust, assert_same_weights, distance, small_data, norm, random_start
):
    x, y = small_data
    epsilon = {"linf": 0.2, "l2": 2.0}[norm]
    attack = kr.attacks.PGD(epsilon, norm=norm, num_steps=3, random_start=random_start)
    robust = make_robust(
        kr.losses.AdversarialTraining(attack), make_base(batch_norm=True), metrics=["accuracy"]
    )
    history = robust.fit(x, y, batch_size=32, epochs=2, shuffle=False, verbose=0).history

    by_hand = make_base(batch_norm=True)
    by_hand.compile(keras.optimizers.SGD(0.5), CROSS_ENTROPY, metrics=["accuracy"])
    losses, accuracies = [], []
    for step, batch in enumerate([slice(0, 32), slice(32, 64)] * 2):
        x_adv = attack(by_hand, x[batch], y[batch], seed=step_seed(step))
        loss, accuracy = by_hand.train_on_batch(x_adv, y[batch])
        by_hand.reset_metrics()
        losses.append(loss)
        accuracies.append(accuracy)

    # The weights include the moving statistics of batch normalization.
    assert_same_weights(robust, by_hand)
    np.testing.assert_allclose(history["loss"], np.reshape(losses, (2, 2)).mean(1), rtol=1e-5)
    np.testing.assert_allclose(history["accuracy"], np.reshape(accuracies, (2, 2)).mean(1))
    ordinary = make_robust(CROSS_ENTROPY, make_base(batch_norm=True))
    ordinary.fit(x, y, batch_size=32, epochs=2, shuffle=False, verbose=0)
    assert distance(robust, ordinary) > 0.01


@pytest.mark.slow_on_jax
def test_trades_maximizes_the_divergence_and_trains_on_both_images(
    make_base, make_robust, assert_same_weights, small_data
):
    x, y = small_data
    epsilon, step_size, beta = 2.0, 1.0, 3.0
    attack = kr.attacks.PGD(epsilon, step_size=step_size, num_steps=3, norm="l2")
    loss = kr.losses.TRADES(attack, beta=beta, start_stddev=0.01)
    robust = make_robust(loss, make_base(batch_norm=True))
    robust.fit(x, y, batch_size=32, epochs=2, shuffle=False, verbose=0)

    def divergence(clean, adversarial):
        p = ops.softmax(clean)
        return ops.sum(p * (ops.log_softmax(clean) - ops.log_softmax(adversarial)), axis=-1)

    def two_image_loss(y_true, y_pred):
        clean, adversarial = y_pred[:, :10], y_pred[:, 10:]
        return ops.mean(
            keras.losses.sparse_categorical_crossentropy(y_true, clean, from_logits=True)
        ) + beta * ops.mean(divergence(clean, adversarial))

    base = make_base(batch_norm=True)
    inputs = [keras.Input((8, 8, 1)), keras.Input((8, 8, 1))]
    by_hand = keras.Model(inputs, ops.concatenate([base(z) for z in inputs], axis=1))
    by_hand.compile(keras.optimizers.SGD(0.5), two_image_loss)
    for step, batch in enumerate([slice(0, 32), slice(32, 64)] * 2):
        clean = ops.convert_to_tensor(x[batch])
        z = clean + 0.01 * backend.normal(clean.shape, step_seed(step), "float32")
        for _ in range(3):
            gradient = backend.input_gradient(
                lambda z, clean=clean: ops.sum(divergence(base(clean), base(z))), z
            )
            length = ops.sqrt(ops.sum(gradient**2, axis=(1, 2, 3), keepdims=True))
            delta = z + step_size * gradient / length - clean
            length = ops.sqrt(ops.sum(delta**2, axis=(1, 2, 3), keepdims=True))
            z = ops.clip(clean + delta * ops.minimum(1.0, epsilon / length), 0.0, 1.0)
        by_hand.train_on_batch([clean, z], y[batch])

    assert_same_weights(robust, base, rtol=1e-4, atol=1e-4)


def test_each_step_has_its_own_noise(make_base, make_robust, distance, small_data):
    # With a learning rate of 0, steps only differ in the noise.
    x, y = small_data
    attack = kr.attacks.PGD(epsilon=0.5, step_size=1e-9, num_steps=1)
    frozen = keras.optimizers.SGD(0.0)
    robust = make_robust(kr.losses.AdversarialTraining(attack), optimizer=frozen)
    losses = robust.fit(x, y, batch_size=64, epochs=3, verbose=0, shuffle=False).history["loss"]
    assert len(set(losses)) == 3
    again = make_robust(kr.losses.AdversarialTraining(attack), optimizer=keras.optimizers.SGD(0.0))
    history = again.fit(x, y, batch_size=64, epochs=3, verbose=0, shuffle=False).history
    np.testing.assert_allclose(history["loss"], losses, rtol=1e-6)


def test_noise_depends_on_the_seed_of_the_model(make_robust, distance, loss, small_data):
    x, y = small_data
    models = [make_robust(loss, seed=seed) for seed in (3, 3, 4)]
    for model in models:
        model.fit(x, y, batch_size=64, epochs=2, verbose=0, shuffle=False)
    assert distance(models[0], models[1]) == 0
    assert distance(models[0], models[2]) > 0


def test_attack_does_not_change_weights(make_base, attack, small_data):
    x, y = small_data
    base = make_base(batch_norm=True)
    before = base.get_weights()
    x_adv = attack(base, x, y, seed=0)
    assert abs(np.asarray(x_adv) - x).max() > 0.1
    for old, new in zip(before, base.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
