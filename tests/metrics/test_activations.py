"""Activations of layers agree with NumPy, for all kinds of models."""

import keras
import numpy as np
import pytest
from keras import ops

import keras_robust as kr
from keras_robust.evaluation import features
from keras_robust.metrics.activations import calls_of_one
from keras_robust.model.classifier import Classifier

pytestmark = pytest.mark.slow_on_jax

X = np.random.default_rng(0).random((10, 4, 4, 1), "float32")
FLAT = X.reshape(10, 16).astype("float64")


def dense(layer, x):
    kernel, bias = (np.asarray(weight, "float64") for weight in layer.get_weights())
    return x @ kernel + bias


def layers():
    return [
        keras.layers.Flatten(name="flat"),
        keras.layers.Dense(5, activation="relu", name="hidden"),
        keras.layers.Dense(3, name="logits"),
    ]


class Subclassed(keras.Model):
    """A model with one layer as an attribute and the others in a list."""

    def __init__(self):
        super().__init__()
        self.flatten, *self.stack = layers()

    def call(self, x):
        x = self.flatten(x)
        for layer in self.stack:
            x = layer(x)
        return x


def built():
    return keras.Sequential([keras.Input((4, 4, 1)), *layers()])


def unbuilt():
    return keras.Sequential(layers())


def functional():
    x = inputs = keras.Input((4, 4, 1))
    for layer in layers():
        x = layer(x)
    return keras.Model(inputs, x)


def robust():
    return kr.RobustModel(unbuilt())


@pytest.mark.parametrize("make", [built, unbuilt, functional, robust, Subclassed])
@pytest.mark.parametrize("batch_size", [3, 128])
def test_all_kinds_of_models(make, batch_size):
    model = make()
    hidden = features(model, X, layer="hidden", batch_size=batch_size)
    assert [call.name for call in calls_of_one(Classifier(model), X)] == [
        "flat",
        "hidden",
        "logits",
    ]
    inner = getattr(model, "base_model", model)
    by_name = {layer.name: layer for layer in inner.layers}
    expected = np.maximum(dense(by_name["hidden"], FLAT), 0)
    np.testing.assert_allclose(hidden, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(features(model, X, batch_size=batch_size), hidden)
    logits = features(model, X, layer="logits")
    np.testing.assert_allclose(logits, dense(by_name["logits"], expected), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(np.asarray(model(X)), logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("outer", ["sequential", "functional"])
def test_nested_models(outer):
    encoder = keras.Sequential(layers()[:2], name="encoder")
    deeper = keras.Sequential([encoder], name="deeper")
    head = keras.layers.Dense(3, name="hidden")
    if outer == "sequential":
        model = keras.Sequential([deeper, head])
    else:
        inputs = keras.Input((4, 4, 1))
        model = keras.Model(inputs, head(deeper(inputs)))
    expected = features(model, X)
    assert [call.name for call in calls_of_one(Classifier(model), X)] == [
        "deeper/encoder/flat",
        "deeper/encoder/hidden",
        "hidden",
    ]
    np.testing.assert_allclose(
        expected, np.maximum(dense(encoder.layers[-1], FLAT), 0), rtol=1e-5, atol=1e-6
    )
    np.testing.assert_array_equal(features(model, X, layer="deeper/encoder/hidden"), expected)
    np.testing.assert_allclose(
        features(model, X, layer="hidden"), dense(head, expected), rtol=1e-4, atol=1e-5
    )


def test_a_layer_called_twice_has_two_names():
    shared = keras.layers.Dense(16, name="shared")
    inputs = keras.Input((16,))
    model = keras.Model(inputs, shared(shared(inputs)))
    x = FLAT.astype("float32")
    assert [call.name for call in calls_of_one(Classifier(model), x)] == ["shared", "shared:1"]
    once = dense(shared, FLAT)
    np.testing.assert_allclose(features(model, x, layer="shared"), once, rtol=1e-4, atol=1e-5)
    twice = features(model, x, layer="shared:1")
    np.testing.assert_allclose(twice, dense(shared, once), rtol=1e-4, atol=1e-5)


def test_features_are_the_inputs_of_the_last_layer_with_weights():
    model = keras.Sequential([*layers(), keras.layers.Softmax(), keras.layers.Rescaling(2.0)])
    np.testing.assert_array_equal(features(model, X), features(model, X, layer="hidden"))
    inputs = keras.Input((4, 4, 1))
    weightless = keras.Model(inputs, keras.layers.Softmax()(keras.layers.Flatten()(inputs)))
    np.testing.assert_array_equal(features(weightless, X), X.reshape(10, 16))


@pytest.mark.parametrize("activation", ["tanh", "prelu"])
def test_features_of_the_tanh_classifier_are_those_after_its_activation(activation):
    hidden = keras.layers.Dense(5)
    head = kr.layers.TanhClassifier(3, activation=activation)
    model = keras.Sequential([keras.layers.Flatten(), hidden, head])
    model.build((None, 4, 4, 1))
    if activation == "prelu":
        head.activate.alpha.assign(np.full(5, 0.5))
    before = dense(hidden, FLAT)
    expected = np.tanh(before) if activation == "tanh" else np.where(before > 0, before, before / 2)
    np.testing.assert_allclose(features(model, X), expected, rtol=1e-5, atol=1e-6)


def test_inference_mode_and_new_weights():
    model = keras.Sequential(
        [
            keras.layers.Flatten(),
            keras.layers.BatchNormalization(name="norm"),
            keras.layers.Dropout(0.9, name="drop"),
            keras.layers.Dense(3),
        ]
    )
    first = features(model, X)
    np.testing.assert_allclose(first, FLAT / np.sqrt(1 + 1e-3), rtol=1e-5)
    model.get_layer("norm").moving_mean.assign(np.full(16, 2.0))
    np.testing.assert_allclose(features(model, X), (FLAT - 2) / np.sqrt(1 + 1e-3), rtol=1e-5)
    assert "call" not in vars(model.get_layer("norm"))


def test_mixed_precision():
    keras.config.set_dtype_policy("mixed_float16")
    model = built()
    hidden = features(model, X)
    assert hidden.dtype == "float32"
    expected = np.maximum(dense(model.get_layer("hidden"), FLAT), 0)
    np.testing.assert_allclose(hidden, expected, rtol=1e-2, atol=1e-2)


def test_a_failing_model_is_restored():
    class Failing(keras.layers.Layer):
        def call(self, x):
            if x.shape[0] == 7:
                raise RuntimeError("seven")
            return x

    layer = Failing()
    model = keras.Sequential([layer, *layers()])
    features(model, X)
    with pytest.raises(RuntimeError, match="seven"):
        features(model, X[:7])
    assert "call" not in vars(layer)


def test_models_without_layers_are_an_error():
    class Bare(keras.Model):
        def call(self, x):
            return ops.reshape(x, (-1, 16))

    for model in (Bare(), lambda x: ops.reshape(x, (-1, 16))):
        with pytest.raises(ValueError, match="No layers were found in argument `model`"):
            features(model, X)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"layer": "hiden"}, r"no layer 'hiden'\. Expected one of \['flat', 'hidden', 'logits'\]"),
        ({"batch_size": 0}, "`batch_size`"),
        ({"x": X[:0]}, "at least one example"),
        ({"x": X * np.nan}, "finite"),
    ],
    ids=str,
)
def test_bad_input(arguments, message):
    with pytest.raises(ValueError, match=message):
        features(built(), **{"x": X, **arguments})
