"""Guided denoising agrees with NumPy, and only trains the denoiser."""

import keras
import numpy as np
import pytest
from keras import ops

import keras_robust as kr
from keras_robust.losses.step import Step, step_scope

RNG = np.random.default_rng(0)
X = RNG.random((6, 4, 4, 1)).astype("float32")
X_ADV = np.clip(X + RNG.uniform(-0.2, 0.2, X.shape), 0, 1).astype("float32")
Y = np.arange(6) % 3
FGSM = kr.attacks.FGSM(0.1)


def make_classifier(dtype="float32"):
    layers = [
        keras.layers.Conv2D(2, 1, activation="tanh", name="conv", dtype=dtype),
        keras.layers.Conv2D(3, 1, name="last_conv", dtype=dtype),
        keras.layers.BatchNormalization(name="norm", dtype=dtype),
        keras.layers.Dropout(0.5, dtype=dtype),
        keras.layers.Flatten(dtype=dtype),
        keras.layers.Dense(3, name="logits", dtype=dtype),
    ]
    classifier = keras.Sequential([keras.Input((4, 4, 1)), *layers])
    rng = np.random.default_rng(1)
    classifier.set_weights([rng.uniform(0.2, 1, w.shape) for w in classifier.get_weights()])
    classifier.trainable = False
    return classifier


def make_model(classifier=None, dtype="float32"):
    classifier = classifier or make_classifier(dtype)
    denoiser = kr.layers.GuidedDenoiser((2, 3), name="denoiser", dtype=dtype)
    denoiser.build((None, 4, 4, 1))
    rng = np.random.default_rng(2)
    low = {4: -0.4, 1: 0.1}
    denoiser.set_weights([rng.uniform(low[w.ndim], 0.6, w.shape) for w in denoiser.get_weights()])
    return keras.Sequential([keras.Input((4, 4, 1)), denoiser, classifier])


def guide(classifier, x, layer="last_conv"):
    """Computes the activations of the 1 x 1 convolutions."""
    weights = [np.asarray(w, "float64") for w in classifier.get_weights()]
    hidden = np.tanh(np.asarray(x, "float64") @ weights[0][0, 0] + weights[1])
    return hidden if layer == "conv" else hidden @ weights[2][0, 0] + weights[3]


def expected(model, x=X, x_adv=X_ADV, layer="last_conv"):
    """Computes the loss of each example. (`tests/layers` compares the denoiser with NumPy.)"""
    denoiser, classifier = model.layers
    with keras.StatelessScope():
        x_hat = ops.convert_to_numpy(denoiser(ops.convert_to_tensor(x_adv), training=True))
    difference = guide(classifier, x_hat, layer) - guide(classifier, x, layer)
    return abs(difference).sum((1, 2, 3))


def train_once(loss, base, x=(X, X_ADV), y=Y, **arguments):
    """Trains one step with a learning rate of 1. Returns the loss before it."""
    model = kr.RobustModel(base)
    model.compile(keras.optimizers.SGD(1.0), loss)
    history = model.fit(x, y, batch_size=len(y), shuffle=False, verbose=0, **arguments)
    return history.history["loss"][0]


@pytest.mark.slow_on_jax
@pytest.mark.parametrize("layer", [None, "conv"])
def test_value_agrees_with_numpy(layer):
    base = make_model()
    each = expected(base, layer=layer or "last_conv")
    assert np.ptp(each) > 0.1
    value = train_once(kr.losses.GuidedDenoising(None, layer=layer), base)
    np.testing.assert_allclose(value, each.mean(), rtol=1e-4)


@pytest.mark.slow
@pytest.mark.slow_on_jax
def test_the_attack_is_on_the_classifier_without_the_denoiser():
    base = make_model()
    attack = kr.attacks.FGSM(1.0, norm="l2")
    attacked_classifier, attacked_model = (
        ops.convert_to_numpy(attack.perturb(model, X, Y, 0)) for model in (base.layers[1], base)
    )
    each = expected(base, x_adv=attacked_classifier)
    assert abs(each.mean() / expected(base, x_adv=attacked_model).mean() - 1) > 0.002
    np.testing.assert_allclose(
        train_once(kr.losses.GuidedDenoising(attack), base, x=X), each.mean(), rtol=1e-4
    )


@pytest.mark.slow_on_jax
def test_example_weights_and_reductions():
    base = make_model()
    each = expected(base)
    sample_weight = np.arange(6, dtype="float32")
    loss = kr.losses.GuidedDenoising(None, reduction="sum")
    value = train_once(loss, base, sample_weight=sample_weight)
    np.testing.assert_allclose(value, (sample_weight * each).sum(), rtol=1e-4)


@pytest.mark.slow_on_jax
def test_only_the_denoiser_learns():
    base = make_model()
    before = [layer.get_weights() for layer in base.layers]
    train_once(kr.losses.GuidedDenoising(None), base)
    denoiser, classifier = (
        [(old != new).any() for old, new in zip(weights, layer.get_weights(), strict=True)]
        for weights, layer in zip(before, base.layers, strict=True)
    )
    assert all(denoiser)
    assert not any(classifier)


@pytest.mark.skipif(keras.backend.backend() == "jax", reason="has no float64 unless it is set up")
def test_the_gradient_of_the_denoiser_agrees_with_finite_differences():
    base = make_model(dtype="float64")
    weights = base.layers[0].weights
    before = base.layers[0].get_weights()
    train_once(kr.losses.GuidedDenoising(None), base)
    after = base.layers[0].get_weights()
    base.layers[0].set_weights(before)
    num_steep = 0
    for variable, old, new in zip(weights, before, after, strict=True):
        if not variable.trainable:
            continue
        direction = RNG.normal(size=old.shape)
        ends = []
        for shift in (1e-4, -1e-4):  # TensorFlow resizes in float32.
            variable.assign(old + shift * direction)
            ends.append(expected(base).mean())
        variable.assign(old)
        slope = (ends[0] - ends[1]) / 2e-4
        np.testing.assert_allclose(((old - new) * direction).sum(), slope, rtol=5e-3, atol=1e-3)
        num_steep += abs(slope) > 0.01
    assert num_steep >= 10


@pytest.mark.slow
def test_it_learns_to_undo_a_shift():
    model = kr.RobustModel(make_model())
    model.compile(keras.optimizers.Adam(0.02), kr.losses.GuidedDenoising(None))
    losses = model.fit((X, X + 0.5), Y, epochs=60, verbose=0).history["loss"]
    assert losses[-1] < 0.3 * losses[0]


def test_pairs_stay_aligned():
    order = np.array([3, 0, 5, 1, 4, 2])

    def losses_of(base, x, x_adv):
        loss = kr.losses.GuidedDenoising(None)
        pair = ops.convert_to_tensor(x), ops.convert_to_tensor(x_adv)
        step = Step(base, *loss.prepare(base, pair, Y, None), training=True, loss=loss)
        with step_scope(step):
            return ops.convert_to_numpy(loss.call(Y, loss.forward(step)))

    each = losses_of(make_model(), X, X_ADV)
    permuted = losses_of(make_model(), X[order], X_ADV[order])
    np.testing.assert_allclose(permuted, each[order], rtol=1e-4)


def test_evaluation_is_the_classification_loss():
    base = make_model()
    model = kr.RobustModel(base)
    model.compile("sgd", kr.losses.GuidedDenoising(FGSM), metrics=["accuracy"])
    logits = ops.convert_to_numpy(base(X, training=False)).astype("float64")
    value = (np.log(np.exp(logits).sum(1)) - logits[np.arange(6), Y]).mean()
    found = model.evaluate(X, Y, verbose=0)
    np.testing.assert_allclose(found, [value, (logits.argmax(1) == Y).mean()], rtol=1e-4)


def trainable():
    classifier = make_classifier()
    classifier.trainable = True
    return make_model(classifier)


def without_convolution():
    classifier = keras.Sequential(
        [keras.Input((4, 4, 1)), keras.layers.Flatten(), keras.layers.Dense(3, name="only")]
    )
    classifier.trainable = False
    return make_model(classifier)


class NeverTrains(keras.callbacks.Callback):
    def on_train_begin(self, logs=None):
        raise AssertionError("Training began.")


@pytest.mark.parametrize(
    ("make", "arguments", "x", "message"),
    [
        (trainable, {}, X, "set `classifier.trainable = False`.*with 8 trainable"),
        (make_classifier, {}, X, "must be a `keras_robust.layers.GuidedDenoiser` followed by"),
        (without_convolution, {}, X, "no convolution.*Expected one of .*'only'"),
        (make_model, {"layer": "cnv"}, X, "one of|'conv', 'last_conv', .*Received: layer='cnv'"),
        (make_model, {}, 3 * X, "inside the attack's `bounds`"),
        (make_model, {}, (X, X_ADV), "Received: pairs"),
        (make_model, {"attack": None}, X, "Received: images only"),
        (make_model, {"attack": None}, (X, X_ADV[:, 1:]), "of the same shape"),
    ],
)
def test_bad_models_and_data(make, arguments, x, message):
    loss = kr.losses.GuidedDenoising(**{"attack": FGSM, **arguments})
    with pytest.raises(ValueError, match=message):
        train_once(loss, make(), x=x, callbacks=[NeverTrains()])


def test_bad_arguments():
    with pytest.raises(ValueError, match=r"`layer` must be the name.*Received: layer=3"):
        kr.losses.GuidedDenoising(FGSM, layer=3)
    with pytest.raises(ValueError, match=r"`attack` must be.*Received: attack='fgsm'"):
        kr.losses.GuidedDenoising("fgsm")


@pytest.mark.slow_on_jax
def test_layers_of_nested_models():
    encoder = keras.Sequential([keras.layers.Conv2D(2, 1, name="deep")], name="encoder")
    classifier = keras.Sequential(
        [keras.Input((4, 4, 1)), encoder, keras.layers.Flatten(), keras.layers.Dense(3)]
    )
    classifier.trainable = False
    base = make_model(classifier)
    named, found = (
        train_once(kr.losses.GuidedDenoising(FGSM, layer=layer), make_model(classifier), x=X)
        for layer in ("encoder/deep", None)
    )
    assert named == found > 0
    inputs = keras.Input((4, 4, 1))
    functional = keras.Model(inputs, classifier(base.layers[0](inputs)))
    assert np.isfinite(train_once(kr.losses.GuidedDenoising(FGSM), functional, x=X))


@pytest.mark.slow_on_jax
def test_mixed_precision_and_an_ensemble():
    keras.config.set_dtype_policy("mixed_float16")
    base = make_model(make_classifier("mixed_float16"), "mixed_float16")
    attack = kr.attacks.Ensemble([FGSM, kr.attacks.PGD(0.05, num_steps=2)])
    value = train_once(kr.losses.GuidedDenoising(attack), base, x=X)
    assert np.isfinite(value)
    assert value > 0
