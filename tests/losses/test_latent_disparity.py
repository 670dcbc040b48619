"""Latent disparity agrees with NumPy: values, gradients, hidden layers and pairs."""

import keras
import numpy as np
import pytest
from keras import ops

import keras_robust as kr
from keras_robust.losses.step import Step, step_scope
from keras_robust.model.calls import noted_calls

RNG = np.random.default_rng(0)
X = RNG.random((6, 2, 2, 1)).astype("float32")
X_ADV = np.clip(X + RNG.uniform(-0.2, 0.2, X.shape), 0, 1).astype("float32")
Y = np.arange(6) % 3
FGSM = kr.attacks.FGSM(0.1)
EPSILON = 1e-3  # Of batch norm.


def network():
    model = keras.Sequential(
        [
            keras.Input((2, 2, 1)),
            keras.layers.Flatten(name="flat"),
            keras.layers.Dense(5, activation="tanh", name="first"),
            keras.layers.BatchNormalization(name="norm", epsilon=EPSILON),
            keras.layers.Dense(4, activation="sigmoid", name="second"),
            keras.layers.Dense(3, name="logits"),
        ]
    )
    rng = np.random.default_rng(1)
    model.set_weights([rng.uniform(0.5, 1.5, w.shape) for w in model.get_weights()])
    return model


NAMES = ["first", "norm", "second"]
SHAPES = [(4, 5), (5,), (5,), (5,), (5, 4), (4,), (4, 3), (3,)]


def forward(weights, x, x_adv):
    """Computes hidden activations by name, and logits, in training mode on both halves."""
    w1, b1, gamma, beta, w2, b2, w3, b3 = weights
    both = np.concatenate([x, x_adv]).reshape(-1, 4).astype("float64")
    first = np.tanh(both @ w1 + b1)
    norm = gamma * (first - first.mean(0)) / np.sqrt(first.var(0) + EPSILON) + beta
    second = 1 / (1 + np.exp(-(norm @ w2 + b2)))
    return {"first": first, "norm": norm, "second": second}, second @ w3 + b3


def cross_entropy(logits, y=Y):
    return np.log(np.exp(logits).sum(1)) - logits[np.arange(len(y)), y]


def expected(weights, ratio="batch", order=1, layers=NAMES, xi=0.25, x=X, x_adv=X_ADV, y=Y):
    """Computes the loss of each example by eq. 3."""
    hidden, logits = forward(weights, x, x_adv)
    rows = np.concatenate([hidden[name] for name in layers], axis=1)
    clean, moved = rows[: len(x)], rows[len(x) :]
    if ratio == "batch":
        clean, moved = clean.reshape(1, -1), moved.reshape(1, -1)
    quotient = np.linalg.norm(clean - moved, order, axis=1) / np.linalg.norm(clean, order, axis=1)
    return (1 - xi) * cross_entropy(logits[: len(x)], y) + xi * quotient


def weights_of(model):
    """Returns the trainable weights in float64."""
    return [np.asarray(ops.convert_to_numpy(v), "float64") for v in model.trainable_variables]


def train_once(loss, x=(X, X_ADV), y=Y, base=None, **arguments):
    """Trains one step with a learning rate of 1. Returns the loss before it, and the gradient."""
    base = base or network()
    base(X)
    model = kr.RobustModel(base)
    model.compile(keras.optimizers.SGD(1.0), loss)
    before = weights_of(base)
    history = model.fit(x, y, batch_size=len(y), shuffle=False, verbose=0, **arguments)
    gradient = [old - new for old, new in zip(before, weights_of(base), strict=True)]
    return history.history["loss"][0], gradient


@pytest.mark.gpu
@pytest.mark.usefixtures("networks_in_float32")
@pytest.mark.slow_on_jax
@pytest.mark.parametrize(
    ("over", "order", "layers"),
    [
        ("batch", 1, None),
        ("sample", 1, ["norm"]),
        ("batch", 2, None),
        ("sample", 3, None),
        ("batch", 1.5, ["second", "first"]),
    ],
)
def test_value_and_gradient(over, order, layers):
    arguments = {"ratio": over, "order": order, "layers": layers}
    value, gradient = train_once(kr.losses.LatentDisparity(None, **arguments))
    arguments["layers"] = layers or NAMES
    start = weights_of(network())
    assert [w.shape for w in start] == SHAPES
    np.testing.assert_allclose(value, expected(start, **arguments).mean(), rtol=1e-5)
    for number, found in enumerate(gradient):
        slopes = np.zeros(found.shape)
        for index in np.ndindex(found.shape):
            ends = []
            for shift in (1e-6, -1e-6):
                moved = [w.copy() for w in start]
                moved[number][index] += shift
                ends.append(expected(moved, **arguments).mean())
            slopes[index] = (ends[0] - ends[1]) / 2e-6
        np.testing.assert_allclose(found, slopes, rtol=1e-3, atol=2e-5)


@pytest.mark.slow_on_jax
def test_weights_of_zero_and_one():
    start = weights_of(network())
    for xi in (0.0, 1.0):
        value, _ = train_once(kr.losses.LatentDisparity(None, weight=xi))
        np.testing.assert_allclose(value, expected(start, xi=xi).mean(), rtol=1e-5)


@pytest.mark.slow_on_jax
def test_moving_averages_are_over_both_halves():
    base = network()
    base.get_layer("norm").moving_mean.assign(np.zeros(5))
    hidden, _ = forward(weights_of(base), X, X_ADV)
    train_once(kr.losses.LatentDisparity(None), base=base)
    found = ops.convert_to_numpy(base.get_layer("norm").moving_mean)
    np.testing.assert_allclose(found, 0.01 * hidden["first"].mean(0), rtol=1e-4)


@pytest.mark.slow_on_jax
def test_the_attack_makes_the_pairs_in_inference_mode():
    base = network()
    x_adv = ops.convert_to_numpy(FGSM.perturb(base, X, Y, 0))
    start = weights_of(base)
    value, _ = train_once(kr.losses.LatentDisparity(FGSM), x=X, base=base)
    assert abs(x_adv - X).max() > 0.09
    np.testing.assert_allclose(value, expected(start, x_adv=x_adv).mean(), rtol=1e-4)


@pytest.mark.slow_on_jax
def test_example_weights():
    sample_weight = np.arange(6, dtype="float32")
    for over in ("batch", "sample"):
        loss = kr.losses.LatentDisparity(None, ratio=over)
        value, _ = train_once(loss, sample_weight=sample_weight)
        each = expected(weights_of(network()), over)
        np.testing.assert_allclose(value, (sample_weight * each).mean(), rtol=1e-5)


def losses_of(loss, base, x, x_adv, y):
    """Computes the loss of each example without `fit`."""
    step = Step(
        base, ops.convert_to_tensor(x), ops.convert_to_tensor(x_adv), training=True, loss=loss
    )
    with step_scope(step):
        return ops.convert_to_numpy(loss.call(ops.convert_to_tensor(y), loss.forward(step)))


def test_pairs_stay_aligned():
    order = np.array([3, 0, 5, 1, 4, 2])
    loss = kr.losses.LatentDisparity(None, ratio="sample", weight=1.0)
    each = losses_of(loss, network(), X, X_ADV, Y)
    permuted = losses_of(loss, network(), X[order], X_ADV[order], Y[order])
    assert np.ptp(each) > 0.01
    np.testing.assert_allclose(permuted, each[order], rtol=1e-5)
    misaligned = losses_of(loss, network(), X, X_ADV[order], Y)
    assert misaligned.mean() > 1.1 * each.mean()


@pytest.mark.slow_on_jax
@pytest.mark.parametrize(("over", "order"), [("batch", 1), ("sample", 2), ("sample", 40)])
def test_zero_disparity_and_zero_activations_have_finite_gradients(over, order):
    arguments = {"weight": 1.0, "ratio": over, "order": order}
    # Two images are equal to their adversarial images, where the norm is not differentiable.
    partly = X_ADV.copy()
    partly[:2] = X[:2]
    for x_adv in (X, partly):
        value, gradient = train_once(kr.losses.LatentDisparity(None, **arguments), x=(X, x_adv))
        assert all(np.isfinite(g).all() for g in gradient)
        assert (value == 0) == (x_adv is X)
        assert any(g.any() for g in gradient) == (x_adv is not X)
    # A network whose hidden activations are 0 on both.
    inactive = keras.Sequential(
        [keras.Input((2, 2, 1)), keras.layers.Flatten(), keras.layers.Dense(4, "relu")]
    )
    inactive.set_weights([-np.ones((4, 4)), np.zeros(4)])
    base = keras.Sequential([inactive, keras.layers.Dense(3)])
    value, gradient = train_once(kr.losses.LatentDisparity(None, **arguments), base=base)
    assert value == 0
    assert not any(g.any() for g in gradient)


@pytest.mark.gpu
def test_a_large_order_approximates_the_maximum_norm():
    value, _ = train_once(kr.losses.LatentDisparity(None, weight=1.0, order=500))
    start = weights_of(network())
    np.testing.assert_allclose(value, expected(start, order=np.inf, xi=1.0).mean(), rtol=5e-3)


class Subclassed(keras.Model):
    """A model with layers in an attribute, a list and a model. One layer is called twice."""

    def __init__(self):
        super().__init__()
        self.flatten = keras.layers.Flatten()
        self.first = keras.layers.Dense(4, name="shared")
        self.rest = [keras.layers.ReLU(name="relu"), keras.layers.Dropout(0.1)]
        self.encoder = keras.Sequential(
            [keras.layers.Reshape((2, 2)), keras.layers.Dense(3, name="inner")], name="encoder"
        )
        self.again = keras.layers.Flatten()
        self.head = keras.layers.Dense(3, name="head")
        self.softmax = keras.layers.Softmax(name="softmax")

    def call(self, x, training=False):
        x = self.first(self.first(self.flatten(x)))
        for layer in self.rest:
            x = layer(x, training=training) if isinstance(layer, keras.layers.Dropout) else layer(x)
        return self.softmax(self.head(self.again(self.encoder(x))))


def test_hidden_layers_of_a_subclassed_model():
    loss = kr.losses.LatentDisparity(kr.attacks.FGSM(0.1, from_logits=False))
    model = Subclassed()
    model(X)
    with noted_calls(model) as calls:
        model(X, training=True)
    assert [call.name for call in calls][-2:] == ["head", "softmax"]
    names = [call.name for call in loss._chosen(calls)]
    assert names == ["shared", "shared:1", "relu", "encoder/inner"]


@pytest.mark.slow_on_jax
def test_names_of_nested_layers():
    loss = kr.losses.LatentDisparity(
        kr.attacks.FGSM(0.1, from_logits=False), layers=["encoder/inner", "shared:1"]
    )
    value, _ = train_once(loss, x=X, base=Subclassed())
    assert np.isfinite(value)
    for layers in (["inner"], ["shared:2", "relu"]):
        loss = kr.losses.LatentDisparity(kr.attacks.FGSM(0.1, from_logits=False), layers=layers)
        with pytest.raises(ValueError, match=r"'shared:1', .*'encoder/inner'.*Received: layers="):
            train_once(loss, x=X, base=Subclassed())


class NeverTrains(keras.callbacks.Callback):
    def on_train_begin(self, logs=None):
        raise AssertionError("Training began.")


@pytest.mark.parametrize(
    ("loss", "x", "message"),
    [
        (kr.losses.LatentDisparity(None), X, "`attack` that computes them. Received: images only"),
        (kr.losses.LatentDisparity(FGSM), (X, X_ADV), "images to attack.*Received: pairs"),
        (kr.losses.LatentDisparity(None), (X, X_ADV[:, :1]), "of the same shape.*2, 2, 1.*1, 2, 1"),
        (kr.losses.LatentDisparity(None), (X, X, X), "two tensors of the same shape.*Received: 3"),
        (kr.losses.LatentDisparity(None), (X, X_ADV * np.nan), "must be finite"),
        (kr.losses.LatentDisparity(FGSM), 9 * X, "inside the attack's `bounds`"),
        (kr.losses.LatentDisparity(None, layers=["norm", "x"]), (X, X_ADV), "which .'x'. do not"),
    ],
)
def test_bad_data_are_an_error_before_training(loss, x, message):
    with pytest.raises(ValueError, match=message):
        train_once(loss, x=x, callbacks=[NeverTrains()])


def test_models_without_hidden_layers_are_an_error():
    base = keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(3)])
    with pytest.raises(ValueError, match=r"must have hidden layers.*\['flatten.*', 'dense.*'\]"):
        train_once(kr.losses.LatentDisparity(FGSM), x=X, base=base, callbacks=[NeverTrains()])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"attack": "fgsm"}, "`attack` must be.*Received: attack='fgsm'"),
        ({"attack": kr.attacks.FGSM(0.1, targeted=True)}, "untargeted"),
        ({"weight": 1.5}, "`weight`.*at most 1.*Received: weight=1.5"),
        ({"weight": float("nan")}, "`weight`"),
        ({"layers": "norm"}, "`layers` must be a list.*Received: layers='norm'"),
        ({"layers": []}, "`layers`"),
        ({"layers": ["a", "a"]}, "distinct layer names"),
        ({"ratio": "sum_over_batch_size"}, "`ratio`.*'batch', 'sample'"),
        ({"reduction": "sample"}, "`ratio='sample'`.*Received: reduction='sample'"),
        ({"order": 0.5}, "`order`.*at least 1.*Received: order=0.5"),
        ({"order": float("inf")}, "`order`"),
    ],
    ids=str,
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        kr.losses.LatentDisparity(**{"attack": FGSM, **arguments})


def test_keras_reduction_can_be_set():
    loss = kr.losses.LatentDisparity(FGSM, reduction="sum")
    assert loss.reduction == "sum"
    assert kr.losses.LatentDisparity.from_config(loss.get_config()).reduction == "sum"


def test_a_configuration_of_version_0_1_0_can_be_loaded():
    config = kr.losses.LatentDisparity(FGSM, ratio="sample").get_config()
    config["reduction"] = config.pop("ratio")
    restored = kr.losses.LatentDisparity.from_config(config)
    assert (restored.ratio, restored.reduction) == ("sample", "sum_over_batch_size")


@pytest.mark.slow_on_jax
def test_a_data_set_of_pairs():
    tf = pytest.importorskip("tensorflow", reason="`tf.data` needs TensorFlow")
    data = tf.data.Dataset.from_tensor_slices(((X, X_ADV), Y)).batch(6)
    unbuilt = [keras.layers.Flatten(), keras.layers.Dense(4), keras.layers.Dense(3)]
    model = kr.RobustModel(keras.Sequential(unbuilt))
    model.compile("sgd", kr.losses.LatentDisparity(None), metrics=["accuracy"])
    history = model.fit(data, epochs=2, validation_data=data, verbose=0).history
    assert history["loss"][1] != history["loss"][0]
    plain = tf.data.Dataset.from_tensor_slices((X, Y)).batch(6)
    np.testing.assert_allclose(model.evaluate(data, verbose=0), model.evaluate(plain, verbose=0))
    np.testing.assert_allclose(
        model.evaluate(data, verbose=0), [history["val_loss"][1], history["val_accuracy"][1]]
    )
    bad = tf.data.Dataset.from_tensor_slices(((X, X_ADV[:, :1]), Y)).batch(6)
    with pytest.raises(ValueError, match="of the same shape"):
        model.fit(bad, callbacks=[NeverTrains()], verbose=0)
    # A generator cannot be checked before, so the error comes when the step is built.
    with pytest.raises(ValueError, match="Received: images only"):
        model.fit((batch for batch in [(X, Y)]), steps_per_epoch=1, verbose=0)


@pytest.mark.slow_on_jax
def test_in_a_sum():
    start = weights_of(network())
    loss = kr.losses.Sum([kr.losses.LatentDisparity(None), kr.losses.FisherInformation()])
    value, _ = train_once(loss)
    # FisherInformation has a separate forward pass, whose batch norm only uses clean images.
    logits = forward(start, X, X[:0])[1]
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    fisher = (1 - 0.0025) * cross_entropy(logits) + 0.0025 * (1 / p).sum(1)
    np.testing.assert_allclose(value, (expected(start) + fisher).mean(), rtol=1e-5)


@pytest.mark.slow_on_jax
def test_pairs_in_a_sum_with_a_loss_that_takes_images():
    loss = kr.losses.AdversarialTraining(FGSM) + kr.losses.LatentDisparity(None)
    value, _ = train_once(loss)
    base = network()
    x_adv = ops.convert_to_numpy(FGSM.perturb(base, X, Y, 0))
    start = weights_of(base)
    adversarial = cross_entropy(forward(start, x_adv, X[:0])[1])
    np.testing.assert_allclose(value, (expected(start) + adversarial).mean(), rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("head", ["tanh", "linear", "template"])
def test_heads_and_attacks(head):
    pgd = kr.attacks.PGD(0.1, num_steps=2)
    attack = kr.attacks.Ensemble([FGSM, pgd]) if head == "tanh" else FGSM
    x, y = RNG.random((24, 2, 2, 1)).astype("float32"), np.arange(24) % 3
    layer = (
        kr.layers.TanhClassifier(3, penalty=0.1)
        if head == "tanh"
        else kr.layers.WNLLHead(3, num_neighbors=4, sigma_neighbor=2, template_size=6)
    )
    base = keras.Sequential(
        [keras.Input((2, 2, 1)), keras.layers.Flatten(), keras.layers.Dense(5, "relu"), layer]
    )
    if head == "template":
        kr.training.adapt_template(base, x, y)
    value, gradient = train_once(kr.losses.LatentDisparity(attack), x=x, y=y, base=base)
    assert np.isfinite(value)
    assert abs(gradient[0]).max() > 0


@pytest.mark.gpu
def test_half_precision():
    keras.config.set_dtype_policy("mixed_float16")
    # Sums of squares overflow in float16.
    base = keras.Sequential(
        [
            keras.Input((2, 2, 1)),
            keras.layers.Flatten(),
            keras.layers.Dense(50, kernel_initializer=keras.initializers.Constant(300.0)),
            keras.layers.Dense(3, kernel_initializer="zeros", dtype="float32"),
        ]
    )
    loss = kr.losses.LatentDisparity(None, weight=1.0, order=2)
    value = losses_of(loss, base, X, X_ADV, Y)
    clean, moved = X.sum(axis=(1, 2, 3)), X_ADV.sum(axis=(1, 2, 3))
    ratio = np.linalg.norm(clean - moved) / np.linalg.norm(clean)
    np.testing.assert_allclose(value, ratio, rtol=2e-2)
