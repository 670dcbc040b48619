"""Losses respect `sample_weight` and `class_weight`."""

import keras
import numpy as np

import keras_robust as kr


def train(model, x, y, **arguments):
    model.fit(x, y, batch_size=32, epochs=2, shuffle=False, verbose=0, **arguments)
    return model


def test_weights_of_zero_exclude_examples(make_robust, assert_same_weights, small_data):
    # Keras divides by the number of examples, so weights 2 and 0 for the two halves of a batch give
    # the mean over the first half.
    x, y = small_data
    loss = kr.losses.AdversarialTraining(
        kr.attacks.PGD(epsilon=2.0, norm="l2", num_steps=3, random_start=False)
    )
    weighted = train(make_robust(loss), x, y, sample_weight=np.tile(np.repeat([2.0, 0.0], 16), 2))
    half = make_robust(loss)
    half.fit(
        np.concatenate([x[:16], x[32:48]]),
        np.concatenate([y[:16], y[32:48]]),
        batch_size=16,
        epochs=2,
        shuffle=False,
        verbose=0,
    )
    assert_same_weights(weighted, half)


def test_images_with_weight_zero_have_no_effect(
    make_robust, loss, assert_same_weights, distance, small_data
):
    x, y = small_data
    weights = np.arange(64) % 3.0
    changed = np.where(weights[:, None, None, None] == 0, 1 - x, x)
    model = train(make_robust(loss), x, y, sample_weight=weights)
    assert_same_weights(model, train(make_robust(loss), changed, y, sample_weight=weights))
    assert distance(model, train(make_robust(loss), x, y)) > 1e-3


def test_weight_scales_the_whole_loss(make_robust, loss, assert_same_weights, small_data):
    x, y = small_data
    weighted = train(make_robust(loss), x, y, sample_weight=np.full(64, 0.5))
    slower = train(make_robust(loss, optimizer=keras.optimizers.SGD(0.25)), x, y)
    assert_same_weights(weighted, slower)


def test_class_weight_is_sample_weight_of_the_class(
    make_robust, loss, assert_same_weights, small_data
):
    x, y = small_data
    by_class = train(make_robust(loss), x, y, class_weight={k: k / 5 for k in range(10)})
    by_sample = train(make_robust(loss), x, y, sample_weight=y / 5)
    assert_same_weights(by_class, by_sample)
