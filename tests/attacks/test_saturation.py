"""Attacks find the same robust accuracy if the logits are multiplied by a constant."""

import keras
import numpy as np
import pytest
from keras import ops

import keras_robust as kr

pytestmark = pytest.mark.slow_on_jax

POLICIES = ["float32", "mixed_float16"]
SCALES = [1.0, 20.0, 1000.0]


def scaled_model(model, policy, scale, where, softmax):
    """Copies the model with logits times `scale`, in the last layer's weights or in a new layer."""
    clone = keras.models.clone_model(
        model,
        clone_function=lambda layer: layer.__class__.from_config(
            {**layer.get_config(), "dtype": policy}
        ),
    )
    *others, kernel, bias = model.get_weights()
    in_weights = scale if where == "weights" else 1.0
    clone.set_weights([*others, in_weights * kernel, in_weights * bias])
    layers = [keras.Input((28, 28, 1)), clone]
    if where == "layer":
        layers.append(keras.layers.Rescaling(scale, dtype="float32"))
    if softmax:
        layers.append(keras.layers.Softmax(dtype="float32"))
    return keras.Sequential(layers)


@pytest.fixture(scope="module")
def data(embedded_data):
    return tuple(values[:200] for values in embedded_data[1])


def accuracy(model, data, **arguments):
    attack = kr.attacks.PGD(0.04, num_steps=10, **arguments)
    return 1 - attack.run(model, *data, seed=0).success_rate


@pytest.mark.slow
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("softmax", [False, True])
def test_scaled_logits_have_the_same_robust_accuracy(trained_model, data, policy, scale, softmax):
    truth = accuracy(trained_model, data)
    assert 0.3 < truth < 0.7
    model = scaled_model(trained_model, policy, scale, "weights" if softmax else "layer", softmax)
    assert abs(accuracy(model, data, from_logits=not softmax) - truth) <= 0.02


@pytest.mark.parametrize("loss", ["margin", "dlr"])
@pytest.mark.parametrize("scale", [16.0, 1024.0])
def test_margin_and_dlr_are_invariant_to_scaled_logits(trained_model, data, loss, scale):
    # Scaling by a power of 2 does not change the rounding.
    x, y = data
    attack = kr.attacks.PGD(0.04, num_steps=10, loss=loss)
    model = scaled_model(trained_model, "float32", scale, "layer", False)
    results = [attack.run(m, x, y, seed=0) for m in (trained_model, model)]
    assert (results[0].success == results[1].success).mean() > 0.99
    assert np.isclose(results[0].x_adv, results[1].x_adv, atol=1e-6).mean() > 0.99


def test_the_plain_cross_entropy_overestimates_robustness(trained_model, data):
    # Shows that the tests above would fail with the cross-entropy that other libraries use.
    model = scaled_model(trained_model, "float32", 1000.0, "layer", False)

    def cross_entropy(model, x, y):
        return keras.losses.sparse_categorical_crossentropy(y, model(x), from_logits=True)

    found = accuracy(model, data, objective=cross_entropy, random_start=False)
    assert found > accuracy(trained_model, data) + 0.1


SOFTMAX_ENDS = {
    "activation of a dense layer": lambda: [keras.layers.Dense(10, activation="softmax")],
    "activation layer": lambda: [keras.layers.Dense(10), keras.layers.Activation("softmax")],
    "softmax layer": lambda: [keras.layers.Dense(10), keras.layers.Softmax()],
    "nested model": lambda: [keras.Sequential([keras.layers.Dense(10, activation="softmax")])],
}


@pytest.mark.parametrize("end", SOFTMAX_ENDS.values(), ids=SOFTMAX_ENDS)
@pytest.mark.parametrize("kind", ["sequential", "functional", "robust model"])
def test_a_final_softmax_is_skipped(trained_model, data, end, kind):
    x, _ = data
    *first, _ = trained_model.layers
    layers = [*first, *end()]
    if kind == "functional":
        inputs = outputs = keras.Input((28, 28, 1))
        for layer in layers:
            outputs = layer(outputs)
        model = keras.Model(inputs, outputs)
    else:
        model = keras.Sequential([keras.Input((28, 28, 1)), *layers])
    *_, kernel, bias = trained_model.get_weights()
    model.set_weights([*trained_model.get_weights()[:-2], 1000 * kernel, 1000 * bias])
    before = ops.convert_to_numpy(model(x))
    attacked = kr.RobustModel(model) if kind == "robust model" else model
    truth = accuracy(trained_model, data, loss="margin")
    assert abs(accuracy(attacked, data, loss="margin", from_logits=False) - truth) <= 0.01
    np.testing.assert_array_equal(ops.convert_to_numpy(model(x)), before)


def test_probabilities_of_a_callable_are_attacked_by_their_logarithm(trained_model, data):
    def probabilities(x):
        return ops.softmax(trained_model(x, training=False))

    truth = accuracy(trained_model, data)
    assert abs(accuracy(probabilities, data, from_logits=False) - truth) <= 0.015
