"""Accuracy under noise agrees with its known distribution."""

import math

import numpy as np
import pytest
from keras import ops

import keras_robust as kr
from keras_robust.evaluation import noise_accuracy

pytestmark = pytest.mark.slow_on_jax


def test_the_mean_agrees_with_the_normal_distribution(threshold, pixels):
    x, y = pixels
    distances = np.abs(x.reshape(-1) - 0.5)
    noisy = noise_accuracy(
        threshold(0.5), x, y, stddevs=[0.5, 0.0, 0.1], num_draws=50, seed=3, verbose=0
    )
    assert list(noisy) == [0.0, 0.1, 0.5]
    assert noisy[0.0].accuracies.tolist() == [1.0] * 50
    for stddev in (0.1, 0.5):
        share = np.array([(1 + math.erf(d / stddev / 2**0.5)) / 2 for d in distances])
        error = math.sqrt((share * (1 - share)).sum() / 50) / 40
        assert abs(noisy[stddev].mean - share.mean()) < 6 * error
        spread = math.sqrt((share * (1 - share)).sum()) / 40
        assert spread / 3 < noisy[stddev].std < 3 * spread


def test_all_stddevs_use_the_same_draws(threshold, pixels):
    # The noise is the same up to its scale, so accuracy cannot rise with the scale.
    noisy = noise_accuracy(
        threshold(0.5), *pixels, stddevs=[0.1, 0.2, 0.4, 0.8], num_draws=5, verbose=0
    )
    accuracies = np.array([value.accuracies for value in noisy.values()])
    assert (np.diff(accuracies, axis=0) <= 0).all()
    assert len(np.unique(accuracies[2])) > 1


def test_accuracies_depend_on_the_seed_and_not_on_the_batch_size(threshold, pixels):
    runs = [
        noise_accuracy(
            threshold(0.5), *pixels, stddevs=[0.5], seed=seed, batch_size=size, verbose=0
        )[0.5].accuracies.tolist()
        for seed, size in ((0, 128), (0, 7), (1, 128))
    ]
    assert runs[0] == runs[1] != runs[2]


def test_clipping():
    def outside(x):
        """Predicts class 1 if any value is outside of [0, 1]."""
        excess = ops.max(ops.abs(ops.reshape(x, (-1, 16)) - 0.5), axis=1) - 0.5
        return ops.stack([-excess, excess - 1e-6], axis=1)

    x, y = np.full((30, 4, 4, 1), 0.5, "float32"), np.zeros(30, "int32")
    free = noise_accuracy(outside, x, y, stddevs=[0.4], num_draws=2, verbose=0)
    assert free[0.4].mean < 0.5
    clipped = noise_accuracy(
        outside, x, y, stddevs=[0.4], num_draws=2, bounds=(0.0, 1.0), verbose=0
    )
    assert clipped[0.4].mean == 1.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"stddevs": []}, "`stddevs` must not be empty"),
        ({"stddevs": [-0.1]}, "`stddevs`"),
        ({"stddevs": [float("nan")]}, "`stddevs`"),
        ({"num_draws": 1}, "`num_draws` must be at least 2"),
        ({"num_draws": 2.5}, "`num_draws`"),
        ({"bounds": (0.0, 0.5)}, "inside the attack's `bounds`"),
        ({"bounds": (1.0, 0.0)}, "`bounds`"),
        ({"y": np.full(40, 2)}, "from 0 to 1"),
        ({"y": None}, "`y` must be given"),
        ({"batch_size": 0}, "`batch_size`"),
    ],
    ids=str,
)
def test_bad_input(threshold, pixels, arguments, message):
    arguments = {"y": pixels[1], "stddevs": [0.1], **arguments}
    with pytest.raises(ValueError, match=message):
        noise_accuracy(threshold(0.5), pixels[0], **arguments, verbose=0)


def test_data_sets_and_one_hot_labels(trained_model):
    data = kr.datasets.load("fashion_mnist_subset", "test").take(30)
    x, y = kr.model.arrays.as_arrays(data)
    results = [
        noise_accuracy(trained_model, *given, stddevs=[0.2], num_draws=2, verbose=0)[0.2].accuracies
        for given in ((x, y), (data,), (x, np.eye(10)[y]))
    ]
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[0], results[2])
