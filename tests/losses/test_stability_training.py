"""Stability training agrees with NumPy."""

import keras
import numpy as np
import pytest

import keras_robust as kr
from keras_robust import backend

ALPHA, STDDEV = 2.0, 0.3


def noise_of_step(linear, number, seed=0):
    """Returns the noise that a `kr.RobustModel` with this seed draws in a step."""
    key = backend.fold_in(backend.make_seed(seed), number)
    return np.asarray(backend.normal(linear.x.shape, key, "float32"))


def expected(linear, noise, weights=None):
    weights = linear.weights if weights is None else weights
    clean = linear.log_softmax(linear.x, weights)
    noisy = linear.log_softmax(linear.x + STDDEV * noise, weights)
    divergence = (np.exp(clean) * (clean - noisy)).sum(1)
    return -clean[np.arange(12), linear.y] + ALPHA * divergence


def test_value_and_new_noise_in_each_step(linear):
    loss = kr.losses.StabilityTraining(ALPHA, STDDEV)
    found, robust = linear.fit(loss, epochs=3)
    values = [expected(linear, noise_of_step(linear, number)).mean() for number in range(3)]
    np.testing.assert_allclose(found, values, rtol=1e-4)
    assert min(values) > linear.cross_entropy(linear.x).mean() + 0.05
    assert np.ptp(values) > 0.01
    plain = robust.evaluate(linear.x, linear.y, batch_size=12, verbose=0)
    assert plain == pytest.approx(linear.cross_entropy(linear.x).mean(), rel=1e-5)


@pytest.mark.slow_on_jax
def test_reduction_and_sample_weight(linear):
    weight = np.linspace(0, 2, 12).astype("float32")
    loss = kr.losses.StabilityTraining(ALPHA, STDDEV, reduction="sum")
    found = linear.fit(loss, sample_weight=weight)[0][0]
    per_example = expected(linear, noise_of_step(linear, 0))
    assert found == pytest.approx((weight * per_example).sum(), rel=1e-4)


def test_gradient_flows_through_both_predictions(linear):
    noise = noise_of_step(linear, 0)
    slopes = linear.numerical_gradient(lambda weights: expected(linear, noise, weights).mean())
    found = linear.gradient(kr.losses.StabilityTraining(ALPHA, STDDEV))
    np.testing.assert_allclose(found, slopes, rtol=1e-3, atol=1e-4)


def test_noise_is_normal_without_clipping():
    x = keras.ops.ones((50, 20, 20, 1))
    loss = kr.losses.StabilityTraining(1.0, STDDEV)
    clean, noisy = loss.prepare(None, x, None, backend.make_seed(3))
    assert clean is x
    n = keras.ops.convert_to_numpy(noisy) - 1
    assert n.std() == pytest.approx(STDDEV, rel=0.02)
    assert abs(n.mean()) < 0.01
    assert (abs(n) > 2 * STDDEV).mean() == pytest.approx(0.0455, rel=0.1)
    assert n.max() > 3 * STDDEV


@pytest.mark.slow_on_jax
def test_probabilities_and_logits_have_the_same_loss(linear):
    loss = kr.losses.StabilityTraining(ALPHA, STDDEV, from_logits=False)
    model = keras.Sequential([linear.make_model(), keras.layers.Softmax()])
    found = linear.fit(loss, model=model, y=np.eye(3, dtype="float32")[linear.y])[0][0]
    assert found == pytest.approx(expected(linear, noise_of_step(linear, 0)).mean(), rel=1e-4)


def test_a_variable_as_weight_and_mixed_precision(linear):
    variable = keras.Variable(ALPHA, trainable=False)
    loss = kr.losses.StabilityTraining(variable, STDDEV)
    found = linear.fit(loss, model=linear.make_model("mixed_float16"), eager=False)[0][0]
    assert found == pytest.approx(expected(linear, noise_of_step(linear, 0)).mean(), rel=1e-2)
    assert loss.get_config()["weight"] == {"variable": ALPHA}


def test_the_first_batch_is_checked(linear):
    softmax = keras.Sequential([linear.make_model(), keras.layers.Softmax()])
    for model, y, message in (
        (softmax, linear.y, "the model ends in a softmax"),
        (linear.make_model(), linear.y + 1, "must be from 0 to 2"),
    ):
        with pytest.raises(ValueError, match=message):
            linear.fit(kr.losses.StabilityTraining(ALPHA, STDDEV), model=model, y=y)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((-1.0, 0.1), "`weight`.*weight=-1.0"),
        ((1.0, 0.0), "`stddev`.*greater than 0.*stddev=0.0"),
        ((1.0, float("nan")), "`stddev`.*nan"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        kr.losses.StabilityTraining(*arguments)
