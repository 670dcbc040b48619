"""Square: no gradient is asked for, every query keeps to the ball, more queries find more."""

import keras
import numpy as np
import pytest
from keras import ops

import keras_robust as kr


def quantized_threshold(x):
    """Class 1 where the mean of the rounded values is above 1/2; without a gradient."""
    level = ops.mean(ops.round(ops.reshape(x, (x.shape[0], -1)) * 10) / 10, axis=1)
    z = ops.stop_gradient(level) - 0.5
    return ops.stack([-z, z], axis=1)


def test_fools_a_model_without_a_gradient():
    # A shift of all values by more than 0.1 leads to the other class.
    x = np.full((20, 8, 8, 1), 0.6, "float32")
    attack = kr.attacks.Square(0.2, num_queries=300)
    result = attack.run(quantized_threshold, x, np.ones(20, "int32"), seed=0)
    assert result.success.mean() > 0.9
    assert result.norms["linf"].max() <= 0.2 + 1e-5
    np.testing.assert_array_equal(result.num_gradients, 0)
    assert (result.num_evaluations > 0).all()


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_more_queries_leave_fewer_standing(norm, trained_model, embedded_data):
    x, y = (values[:100] for values in embedded_data[1])
    epsilon = {"linf": 0.05, "l2": 1.0}[norm]
    rates = [
        kr.attacks.Square(epsilon, norm=norm, num_queries=num_queries)
        .run(trained_model, x, y, seed=0)
        .success_rate
        for num_queries in (1, 300)
    ]
    assert rates[1] > rates[0] + 0.1


def test_fooled_examples_cost_no_more_queries(trained_model, embedded_data):
    x, y = (values[:100] for values in embedded_data[1])
    result = kr.attacks.Square(0.05, num_queries=200).run(trained_model, x, y, seed=0)
    assert result.num_evaluations[~result.success].min() >= 200
    assert result.num_evaluations[result.success].mean() < 150


def test_is_no_stronger_than_the_gradient_on_a_linear_model():
    # The worst point of the L-infinity ball is known: nothing may do better, and Square comes near.
    rng = np.random.default_rng(0)
    model = keras.Sequential(
        [keras.Input((6, 6, 1)), keras.layers.Flatten(), keras.layers.Dense(2)]
    )
    model.set_weights([rng.normal(size=(36, 2)).astype("float32"), np.zeros(2, "float32")])
    x = rng.uniform(0.3, 0.7, (200, 6, 6, 1)).astype("float32")
    y = ops.convert_to_numpy(model(x)).argmax(1)
    kernel = model.get_weights()[0]
    w = (kernel[:, 1] - kernel[:, 0]) * np.where(y == 0, 1, -1)[:, None]
    z = (x.reshape(200, -1) * w).sum(1)
    possible = z + 0.09 * abs(w).sum(1) > 0
    result = kr.attacks.Square(0.09, num_queries=1000).run(model, x, y, seed=0)
    assert 0.1 < possible.mean() < 0.95
    assert not (result.success & ~possible).any()
    assert (result.success & possible).sum() > 0.9 * possible.sum()
