"""Layers are found inside of layers and models, and features work for them there."""

import keras
import numpy as np
import pytest
from keras import ops

import keras_robust as kr
from keras_robust.model.classifier import Classifier
from keras_robust.model.layers import all_layers, is_made_of_layers, named_layers

L = keras.layers


@keras.saving.register_keras_serializable("test_layers")
class Block(L.Layer):
    """A residual block with layers as an attribute, and in a list, a tuple and a dict."""

    def __init__(self, width=4, **kwargs):
        super().__init__(**kwargs)
        self.conv = L.Conv2D(width, 3, padding="same", name="conv")
        self.norms = [L.BatchNormalization(name="norm")]
        self.pair = (L.Activation("relu", name="first"), L.Activation("tanh", name="second"))
        self.by_name = {"last": L.Conv2D(width, 1, name="last")}

    def build(self, shape):
        self.conv.build(shape)
        shape = (*shape[:-1], self.conv.filters)
        self.norms[0].build(shape)
        self.by_name["last"].build(shape)
        self.built = True

    def call(self, x, training=None):
        h = self.pair[0](self.norms[0](self.conv(x), training=training))
        return h + self.pair[1](self.by_name["last"](h))


@keras.saving.register_keras_serializable("test_layers")
class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.blocks = {"only": Block(name="block")}
        self.flat, self.head = L.Flatten(name="flat"), L.Dense(3, name="head")

    def call(self, x, training=None):
        return self.head(self.flat(self.blocks["only"](x, training=training)))


def sequential():
    layers = [Block(name="block"), L.Flatten(name="flat"), L.Dense(3, name="head")]
    return keras.Sequential([keras.Input((6, 6, 1)), *layers])


def functional():
    x = keras.Input((6, 6, 1))
    return keras.Model(x, L.Dense(3, name="head")(L.Flatten(name="flat")(Block(name="block")(x))))


def nested():
    inner = keras.Sequential([keras.Input((6, 6, 1)), Block(name="block")], name="encoder")
    layers = [inner, L.Flatten(name="flat"), L.Dense(3, name="head")]
    return keras.Sequential([keras.Input((6, 6, 1)), *layers])


MODELS = [sequential, functional, nested, Subclassed]
PARTS = ["conv", "norm", "first", "last", "second"]
X = np.random.default_rng(0).random((24, 6, 6, 1), "float32")
Y = np.arange(24) % 3


@pytest.mark.parametrize("make", MODELS)
def test_every_layer_is_found_once(make):
    model = make()
    model(X[:1])
    block = "encoder/block" if make is nested else "block"
    expected = {block, *(f"{block}/{name}" for name in PARTS), "flat", "head"}
    assert {n for n in named_layers(model) if not n.startswith("input_layer")} == expected
    found = all_layers(kr.RobustModel(model))
    assert len({id(layer) for layer in found}) == len(found)
    assert {layer.name for layer in found} >= {*PARTS, "block", "flat", "head"}


@pytest.mark.slow_on_jax
@pytest.mark.parametrize("make", MODELS)
def test_features_of_nested_layers(make):
    model = make()
    model(X[:1])
    block = "encoder/block" if make is nested else "block"
    parts = [f"{block}/{name}" for name in PARTS]
    errors = kr.evaluation.perturbation_error(model, X, X + 0.01)
    names = [name for name in errors if not name.startswith("input_layer")]
    assert names == [*parts, "flat", "head"]
    # The features of the block are its output, the sum of two of its parts.
    block_output = kr.evaluation.features(model, X, layer=block)
    first = kr.evaluation.features(model, X, layer=f"{block}/first")
    second = kr.evaluation.features(model, X, layer=f"{block}/second")
    np.testing.assert_allclose(block_output, first + second, atol=1e-6)
    loss = kr.losses.LatentDisparity(kr.attacks.FGSM(0.1), layers=[block, parts[0]])
    robust = kr.RobustModel(model)
    robust.compile("sgd", loss)
    robust.fit(X, Y, verbose=0)
    with pytest.raises(ValueError, match=f"{block}/conv.*'missing'"):
        kr.evaluation.features(model, X, layer="missing")


def test_duplicate_names_are_numbered():
    class Twins(L.Layer):
        def __init__(self):
            super().__init__(name="twins")
            self.a, self.b = L.Dense(3, name="dense"), L.Dense(3, name="dense")

        def call(self, x):
            return self.b(self.a(x))

    model = keras.Sequential([keras.Input((4,)), Twins()])
    assert list(named_layers(model)) == ["twins", "twins/dense", "twins/dense~2"]


@pytest.mark.slow_on_jax
def test_composite_layers_of_keras_are_single_layers():
    x = keras.Input((5, 4))
    h = L.Bidirectional(L.LSTM(3, return_sequences=True), name="both")(x)
    h = L.MultiHeadAttention(2, 2, name="attention")(h, h)
    h = L.TimeDistributed(L.Dense(3), name="each")(h)
    model = keras.Model(x, L.Dense(3, name="head")(L.Flatten(name="flat")(h)))
    assert not any(is_made_of_layers(layer) for layer in model.layers)
    data = np.random.default_rng(0).random((4, 5, 4), "float32")
    errors = kr.evaluation.perturbation_error(model, data, data + 0.01)
    names = [name for name in errors if not name.startswith("input_layer")]
    assert names == ["both", "attention", "each", "flat", "head"]


@pytest.mark.slow_on_jax
@pytest.mark.parametrize("make", MODELS)
def test_nested_batch_norm_can_be_frozen(make):
    model = make()
    model(X[:1])
    (norm,) = [v for v in all_layers(model) if isinstance(v, L.BatchNormalization)]
    for freeze in (True, False):
        before = ops.convert_to_numpy(norm.moving_mean).copy()
        robust = kr.RobustModel(model)
        loss = kr.losses.DeepDefense(num_steps=1, freeze_batch_norm=freeze)
        robust.compile(keras.optimizers.SGD(0.0), loss)
        robust.fit(X, Y, verbose=0)
        moved = abs(ops.convert_to_numpy(norm.moving_mean) - before).max()
        assert (moved == 0) == freeze


@keras.saving.register_keras_serializable("test_layers")
class WithHead(L.Layer):
    """A layer with a WNLL head."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.flat = L.Flatten()
        self.head = kr.layers.WNLLHead(3, num_neighbors=4, sigma_neighbor=2, template_size=12)

    def call(self, x, training=None):
        return self.head(self.flat(x), training=training)


@pytest.mark.slow
def test_a_joint_head_inside_of_a_layer():
    model = keras.Sequential([keras.Input((6, 6, 1)), WithHead()])
    assert not Classifier(model).depends_on_batch
    kr.training.adapt_template(model, X, Y)
    assert Classifier(model).depends_on_batch
    attack = kr.attacks.PGD(0.1, num_steps=2)
    report = kr.evaluate(model, X, Y, {"PGD": attack}, batch_size=10, checks=False, verbose=0)
    names = [row.name for row in report.rows]
    assert {f"PGD, {name}" for name in ("linear", "exact", "soft_neighbors")} <= set(names)
    # Batches keep the order of the examples, and the last one is not padded.
    expected = np.concatenate([model.predict(X[n : n + 10], verbose=0) for n in (0, 10, 20)])
    assert report.accuracy("clean") == (expected.argmax(axis=1) == Y).mean()
    robust = kr.RobustModel(model)
    robust.compile("sgd", kr.losses.GraphInterpolation(num_folds=2))
    assert np.isfinite(robust.fit(X, Y, batch_size=24, verbose=0).history["loss"]).all()


@pytest.mark.slow
@pytest.mark.slow_on_jax
def test_saturation_inside_of_layers_is_found():
    model = sequential()
    (last,) = [v for v in all_layers(model) if v.name == "last"]
    last.set_weights([100 * weight + 50 for weight in last.get_weights()])
    attack = kr.attacks.PGD(0.1, num_steps=2)
    y = model.predict(X, verbose=0).argmax(axis=1)
    results = {r.name: r for r in kr.evaluation.check(model, X, y, attack=attack, verbose=0)}
    assert "block/second" in results["the features are not saturated"].sentence
