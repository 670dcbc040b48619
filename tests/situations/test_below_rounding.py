"""Promised: no check fails for a difference that is below rounding, whatever the logits' scale."""

import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_robust as kr
from keras_robust.model.arrays import as_arrays

# All checks on one model take some 10 seconds, on JAX a minute: those that add little are slow.
pytestmark = pytest.mark.slow_on_jax
# The margin's direction is the same whatever the logits are multiplied with; the cross-entropy of
# logits of 1e-12 is as good as linear in them, and climbs the mean of all other classes.
ATTACK = kr.attacks.PGD(0.1, num_steps=5, loss="margin")
DIFFERENCES = "the gradient agrees with finite differences"


@pytest.fixture(scope="module")
def trained():
    """A small classifier, and images of the same size."""
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


def behind(model, first=None, scale=1.0, offset=0.0):
    """The model behind another layer, and before a scale and an offset of all logits."""
    stack = [] if first is None else [layers.Lambda(first)]
    return keras.Sequential(
        [keras.Input(model.input_shape[1:]), *stack, model, layers.Rescaling(scale, offset)]
    )


def checked(model, x, **arguments):
    """The results, on what the model itself says."""
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
    results = checked(behind(model, scale=scale), x)
    assert failures(results) == set()
    assert results[DIFFERENCES].passed
    assert results[DIFFERENCES].figures["median_relative_error"] < 0.02


@pytest.mark.slow
@pytest.mark.parametrize("scale", [1.0, 1e-12])
def test_a_gradient_that_misleads_is_found_at_every_scale(trained, scale):
    model, x = trained
    results = checked(behind(model, straight_through, scale), x)
    assert DIFFERENCES in failures(results)


# Scores that differ by a millionth, or by nothing at all, and scores that are all 0.
LOST = {"near": (1e-7, 1.0), "lost": (1e-12, 1.0), "zero": (0.0, 0.0)}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("scale", "offset"),
    [
        pytest.param(*v, id=n, marks=[pytest.mark.slow] if n == "near" else [])
        for n, v in LOST.items()
    ],
)
def test_classes_that_rounding_decides_say_nothing(trained, scale, offset):
    model, x = trained
    results = checked(behind(model, scale=scale, offset=offset), x)
    assert not any(result.passed for result in results.values())
    assert failures(results) == set()
    assert (
        "rounding decides the class of 100.0% of the examples"
        in results["the gradient is finite"].sentence
    )


@pytest.mark.slow
def test_probabilities_that_round_to_a_tie(trained):
    model, x = trained
    softmax = keras.Sequential([*behind(model, scale=1e-12).layers, layers.Softmax()])
    results = checked(softmax, x, attack=ATTACK.replace(from_logits=False))
    assert failures(results) == set()


@pytest.mark.slow
def test_a_large_offset_leaves_the_class_and_takes_the_slope(trained):
    # Steps of 0.06, and logits that are 10 apart.
    model, x = trained
    results = checked(behind(model, offset=1e6), x)
    assert failures(results) == set()
    assert results[DIFFERENCES].passed is None
    assert "by more than rounding" in results[DIFFERENCES].sentence


@pytest.mark.slow
def test_an_untrained_mobilenet():
    keras.utils.set_random_seed(0)
    model = keras.applications.MobileNetV2(
        weights=None, classifier_activation=None, input_shape=(32, 32, 3), classes=10
    )
    x = np.random.default_rng(0).random((40, 32, 32, 3), "float32")
    assert abs(model.predict(x, verbose=0)).max() < 1e-9
    results = checked(model, x, num_examples=20)
    assert failures(results) == set()
    assert results[DIFFERENCES].passed
