"""Losses work with optimizers that accumulate gradients over several steps."""

import keras
import pytest

import keras_robust as kr


def test_two_accumulated_halves_equal_one_batch(make_robust, assert_same_weights, small_data):
    x, y = small_data
    loss = kr.losses.AdversarialTraining(
        kr.attacks.PGD(epsilon=2.0, norm="l2", num_steps=3, random_start=False)
    )
    whole = make_robust(loss)
    whole.fit(x, y, batch_size=64, epochs=2, shuffle=False, verbose=0)
    optimizer = keras.optimizers.SGD(0.5, gradient_accumulation_steps=2)
    halves = make_robust(loss, optimizer=optimizer)
    halves.fit(x, y, batch_size=32, epochs=2, shuffle=False, verbose=0)
    assert_same_weights(whole, halves)


@pytest.mark.slow
@pytest.mark.parametrize("accumulated", [None, 2])
@pytest.mark.parametrize("wrap", [False, True], ids=["plain", "loss_scaled"])
def test_each_update_has_its_own_noise(make_robust, small_data, wrap, accumulated):
    # With a learning rate of 0, steps only differ in the noise.
    attack = kr.attacks.PGD(epsilon=0.5, step_size=1e-9, num_steps=1)
    optimizer = keras.optimizers.SGD(0.0, gradient_accumulation_steps=accumulated)
    if wrap:
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    robust = make_robust(kr.losses.AdversarialTraining(attack), optimizer=optimizer)
    history = robust.fit(*small_data, batch_size=64, epochs=4, verbose=0, shuffle=False).history
    assert len(set(history["loss"])) == 4 // (accumulated or 1)
