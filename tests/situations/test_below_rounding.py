"""No check fails because of rounding errors, at any scale of the logits."""

import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_robust as kr
from keras_robust.model.arrays import as_arrays

# All checks of one model take about 10 seconds, or a minute on JAX, so most tests are slow.
pytestmark = pytest.mark.slow_on_jax
# The direction of the margin does not depend on the scale of the logits. The cross-entropy of tiny
# logits is nearly linear, and maximizes the mean of all other classes instead.
ATTACK = kr.attacks.PGD(0.1, num_steps=5, loss="margin")
DIFFERENCES = "the gradient agrees with finite differences"


@pytest.fixture(scope="module")
def trained():
    """Returns a small trained classifier and its images."""
    x, y = as_arrays(kr.datasets.load("fashion_mnist_subset", "train").take(2000))
    x = x[:, 2:26:3, 2:26:3]
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [keras.Input((8, 8, 1)), layers.Flatten(), layers.Dense(32, "relu"), layers.Dense(10)]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(5e-3), loss)
    model.fit(x, y, epochs=4, verbose=0)
    return model, x[:200]


def rescaled(model, first=None, scale=1.0, offset=0.0):
    """Returns the model with a layer in front, and scaled and shifted logits."""
    stack = [] if first is None else [layers.Lambda(first)]
    return keras.Sequential(
        [keras.Input(model.input_shape[1:]), *stack, model, layers.Rescaling(scale, offset)]
    )


def checked(model, x, **arguments):
    """Checks the model with its own predictions as labels. Returns the results by name."""
    y = model.predict(x, verbose=0).argmax(axis=1)
    arguments = {"attack": ATTACK, "num_examples": 40, "verbose": 0, **arguments}
    return {result.name: result for result in kr.evaluation.check(model, x, y, **arguments)}


def failures(results):
    return {name for name, result in results.items() if result.passed is False}


def straight_through(x):
    return x + ops.stop_gradient(ops.round(3 * x) / 3 - x)


@pytest.mark.slow
@pytest.mark.parametrize(
    "scale",
    [pytest.param(1.0, marks=pytest.mark.slow), 1e-12, pytest.param(1e-25, marks=pytest.mark.slow)],
)
def test_a_sound_model_passes_at_every_scale(trained, scale):
    model, x = trained
    results = checked(rescaled(model, scale=scale), x)
    assert failures(results) == set()
    assert results[DIFFERENCES].passed
    assert results[DIFFERENCES].figures["median_relative_error"] < 0.02


@pytest.mark.slow
@pytest.mark.parametrize("scale", [1.0, 1e-12])
def test_a_wrong_gradient_is_found_at_every_scale(trained, scale):
    model, x = trained
    results = checked(rescaled(model, straight_through, scale), x)
    assert DIFFERENCES in failures(results)


# Scores that differ by a millionth, scores that are equal after rounding, and scores of 0.
LOST = {"near": (1e-7, 1.0), "lost": (1e-12, 1.0), "zero": (0.0, 0.0)}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("scale", "offset"),
    [
        pytest.param(*v, id=n, marks=[pytest.mark.slow] if n == "near" else [])
        for n, v in LOST.items()
    ],
)
def test_checks_are_inconclusive_if_rounding_decides_the_class(trained, scale, offset):
    model, x = trained
    results = checked(rescaled(model, scale=scale, offset=offset), x)
    assert not any(result.passed for result in results.values())
    assert failures(results) == set()
    assert (
        "rounding decides the class of 100.0% of the examples"
        in results["the gradient is finite"].sentence
    )


@pytest.mark.slow
def test_no_check_fails_for_probabilities_that_tie_after_rounding(trained):
    model, x = trained
    softmax = keras.Sequential([*rescaled(model, scale=1e-12).layers, layers.Softmax()])
    results = checked(softmax, x, attack=ATTACK.replace(from_logits=False))
    assert failures(results) == set()


@pytest.mark.slow
def test_a_large_offset_makes_finite_differences_inconclusive(trained):
    # Rounding to multiples of 0.06, and logits that differ by 10.
    model, x = trained
    results = checked(rescaled(model, offset=1e6), x)
    assert failures(results) == set()
    assert results[DIFFERENCES].passed is None
    assert "by more than rounding" in results[DIFFERENCES].sentence


@pytest.mark.slow
def test_an_untrained_mobilenet_passes():
    keras.utils.set_random_seed(0)
    model = keras.applications.MobileNetV2(
        weights=None, classifier_activation=None, input_shape=(32, 32, 3), classes=10
    )
    x = np.random.default_rng(0).random((40, 32, 32, 3), "float32")
    assert abs(model.predict(x, verbose=0)).max() < 1e-9
    results = checked(model, x, num_examples=20)
    assert failures(results) == set()
    assert results[DIFFERENCES].passed
