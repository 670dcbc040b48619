"""Distribution, bounds and cost of the Gaussian noise attack."""

import numpy as np
import pytest
from keras import ops

import keras_robust as kr


def model(x):
    """Predicts class 1 if the mean of the values is greater than 0."""
    mean = ops.mean(x, axis=(1, 2, 3))
    return ops.stack([-mean, 2 * mean], axis=1)


def test_distribution():
    # Every example is misclassified, so every image is kept.
    x, y = np.full((500, 10, 10, 2), -20.0, "float32"), np.ones(500, int)
    attack = kr.attacks.GaussianNoise(2.0, bounds=(-100.0, 100.0))
    delta = (attack.run(model, x, y, seed=0).x_adv - x).astype("float64") / 2
    # The tolerance is five standard errors of each moment of 100,000 numbers.
    assert abs(delta.mean()) < 5 / 1e5**0.5
    assert abs((delta**2).mean() - 1) < 5 * (2 / 1e5) ** 0.5
    assert abs((delta**4).mean() - 3) < 5 * (96 / 1e5) ** 0.5
    assert len(np.unique(delta)) > 90_000


def test_success_rate_and_failures_keep_the_original_image():
    # The mean of 16 values is 0.25 + N(0, 1/16), which is negative with probability Phi(-1).
    x, y = np.full((4000, 4, 4, 1), 0.25, "float32"), np.ones(4000, int)
    result = kr.attacks.GaussianNoise(1.0, bounds=(-9.0, 9.0)).run(model, x, y, seed=1)
    assert abs(result.success_rate - 0.1587) < 5 * (0.1587 * 0.8413 / 4000) ** 0.5
    np.testing.assert_array_equal(result.x_adv.mean(axis=(1, 2, 3)) < 0, result.success)
    np.testing.assert_array_equal(result.x_adv[~result.success], x[~result.success])
    assert (result.num_gradients == 0).all()


def test_bounds_and_seeds():
    x, y = np.random.default_rng(0).random((20, 4, 4, 1), "float32"), np.zeros(20, int)
    attack = kr.attacks.GaussianNoise(1.0)
    first, again, other = (attack.run(model, x, y, seed).x_adv for seed in (1, 1, 2))
    assert first.min() == 0.0
    assert first.max() == 1.0
    np.testing.assert_array_equal(first, again)
    assert (first != other).mean() > 0.3
    np.testing.assert_array_equal(kr.attacks.GaussianNoise(0.0).run(model, x, y, 1).x_adv, x)


@pytest.mark.parametrize("stddev", [-0.1, float("nan"), float("inf"), "0.1"])
def test_bad_stddev(stddev):
    with pytest.raises(ValueError, match=r"`stddev`.*Received: stddev="):
        kr.attacks.GaussianNoise(stddev)
