"""Adversarial training and TRADES agree with NumPy."""

import keras
import numpy as np
import pytest
from keras import ops

import keras_robust as kr
from keras_robust import backend
from keras_robust.losses.step import Step, step_scope

RNG = np.random.default_rng(0)
X = RNG.uniform(0.3, 0.7, (12, 2, 3, 1)).astype("float32")
Y = np.arange(12) % 3
WEIGHTS = RNG.normal(size=(6, 3)).astype("float32")
STEPS = kr.attacks.IFGSM(0.1, num_steps=5)


def linear_model():
    model = keras.Sequential(
        [keras.Input((2, 3, 1)), keras.layers.Flatten(), keras.layers.Dense(3, use_bias=False)]
    )
    model.set_weights([WEIGHTS])
    return model


def log_softmax(x):
    logits = x.reshape(len(x), -1).astype("float64") @ WEIGHTS
    logits -= logits.max(1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(1, keepdims=True))


def first_loss(loss, sample_weight=None, y=Y):
    """Returns the loss that `fit` reports for one step on the whole batch."""
    model = kr.RobustModel(linear_model())
    model.compile(optimizer=keras.optimizers.SGD(0.0), loss=loss)
    history = model.fit(X, y, batch_size=12, sample_weight=sample_weight, shuffle=False, verbose=0)
    return history.history["loss"][0]


def adversarial_cross_entropy():
    """Computes the loss without the library: IFGSM by the softmax gradient W (p - onehot)."""
    x_adv = X.astype("float64")
    for _ in range(5):
        p = np.exp(log_softmax(x_adv))
        gradient = ((p - np.eye(3)[Y]) @ WEIGHTS.T).reshape(X.shape)
        x_adv = np.clip(x_adv + 0.05 * np.sign(gradient), X - 0.1, X + 0.1)
    return -log_softmax(x_adv)[np.arange(12), Y]


@pytest.mark.parametrize("y", [Y, Y[:, None], np.eye(3, dtype="float32")[Y]], ids=["", "1", "hot"])
def test_adversarial_training_value(y):
    expected = adversarial_cross_entropy()
    clean = -log_softmax(X)[np.arange(12), Y].mean()
    assert expected.mean() > clean + 0.1
    np.testing.assert_allclose(
        first_loss(kr.losses.AdversarialTraining(STEPS), y=y), expected.mean(), rtol=1e-4
    )


def test_reductions_and_sample_weight():
    per_example = adversarial_cross_entropy()
    loss = kr.losses.AdversarialTraining(STEPS, reduction="sum")
    np.testing.assert_allclose(first_loss(loss), per_example.sum(), rtol=1e-4)
    weight = RNG.uniform(0, 2, 12).astype("float32")
    loss = kr.losses.AdversarialTraining(STEPS)
    np.testing.assert_allclose(
        first_loss(loss, sample_weight=weight), (per_example * weight).mean(), rtol=1e-4
    )
    loss = kr.losses.AdversarialTraining(STEPS, reduction="mean_with_sample_weight")
    np.testing.assert_allclose(
        first_loss(loss, sample_weight=weight), np.average(per_example, weights=weight), rtol=1e-4
    )


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        ("sparse_categorical_crossentropy", adversarial_cross_entropy().mean()),
        (
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            adversarial_cross_entropy().mean(),
        ),
    ],
    ids=["name", "object"],
)
def test_classification_loss_gets_logits(loss, expected):
    at = kr.losses.AdversarialTraining(STEPS, loss=loss)
    np.testing.assert_allclose(first_loss(at), expected, rtol=1e-4)


def test_probabilities_and_logits_have_the_same_loss():
    attack = kr.attacks.IFGSM(0.1, num_steps=5, from_logits=False)
    model = kr.RobustModel(keras.Sequential([linear_model(), keras.layers.Softmax()]))
    model.compile(optimizer=keras.optimizers.SGD(0.0), loss=kr.losses.AdversarialTraining(attack))
    value = model.fit(X, Y, batch_size=12, verbose=0).history["loss"][0]
    np.testing.assert_allclose(value, adversarial_cross_entropy().mean(), rtol=1e-4)


@pytest.mark.parametrize("beta", [0.0, 2.0])
def test_trades_value(beta):
    # For given adversarial images, the loss is CE(x) + beta KL(p(x) || p(x')).
    loss = kr.losses.TRADES(kr.attacks.PGD(0.1, num_steps=5), beta=beta)
    x_adv = (X + RNG.uniform(-0.1, 0.1, X.shape)).astype("float32")
    model = linear_model()
    with step_scope(Step(model, X, x_adv, training=True, loss=loss)):
        value = loss(Y, model(X))
    clean, adversarial = log_softmax(X), log_softmax(x_adv)
    divergence = (np.exp(clean) * (clean - adversarial)).sum(1)
    expected = (-clean[np.arange(12), Y] + beta * divergence).mean()
    np.testing.assert_allclose(float(value), expected, rtol=1e-5)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_trades_maximizes_the_divergence_from_near_the_image(norm):
    # The ascent in NumPy: the gradient of KL(p || q) in the image of q is W (q - p).
    loss = kr.losses.TRADES(kr.attacks.PGD(0.2, num_steps=10, norm=norm))
    seed = backend.make_seed(3)
    x, x_adv = loss.prepare(linear_model(), ops.convert_to_tensor(X), Y, seed)
    np.testing.assert_array_equal(ops.convert_to_numpy(x), X)

    noise = ops.convert_to_numpy(backend.normal(X.shape, seed, "float32"))
    p = np.exp(log_softmax(X))
    expected = X + 0.001 * noise.astype("float64")
    for _ in range(10):
        gradient = (np.exp(log_softmax(expected)) - p) @ WEIGHTS.T
        length = np.linalg.norm(gradient, axis=1, keepdims=True)
        direction = np.sign(gradient) if norm == "linf" else gradient / length
        delta = expected + 0.05 * direction.reshape(X.shape) - X
        if norm == "linf":
            delta = np.clip(delta, -0.2, 0.2)
        else:
            radius = np.linalg.norm(delta.reshape(12, -1), axis=1)
            delta *= np.minimum(1, 0.2 / radius)[:, None, None, None]
        expected = np.clip(X + delta, 0, 1)
    np.testing.assert_allclose(ops.convert_to_numpy(x_adv), expected, atol=1e-3)


def test_trades_gradient_flows_through_both_passes():
    # Finite differences of the loss in the weights, with constant adversarial images.
    loss = kr.losses.TRADES(kr.attacks.PGD(0.1, num_steps=2), beta=3.0)
    x_adv = (X + RNG.uniform(-0.1, 0.1, X.shape)).astype("float32")
    direction = RNG.normal(size=WEIGHTS.shape)

    def reference(weights):
        def log_p(x):
            logits = x.reshape(12, -1).astype("float64") @ weights
            return logits - np.log(np.exp(logits).sum(1, keepdims=True))

        clean, moved = log_p(X), log_p(x_adv)
        divergence = (np.exp(clean) * (clean - moved)).sum(1)
        return (-clean[np.arange(12), Y] + 3 * divergence).mean()

    slope = (reference(WEIGHTS + 1e-6 * direction) - reference(WEIGHTS - 1e-6 * direction)) / 2e-6
    model = kr.RobustModel(linear_model())
    loss.prepare = lambda model, x, y, seed: (x, ops.convert_to_tensor(x_adv))
    model.compile(optimizer=keras.optimizers.SGD(1.0), loss=loss)
    model.fit(X, Y, batch_size=12, shuffle=False, verbose=0)
    gradient = WEIGHTS - model.get_weights()[0]
    np.testing.assert_allclose((gradient * direction).sum(), slope, rtol=1e-3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: kr.losses.AdversarialTraining("pgd"), "`attack` must be.*Received: attack='pgd'"),
        (
            lambda: kr.losses.AdversarialTraining(kr.attacks.PGD(0.1, targeted=True)),
            "`attack` must be untargeted",
        ),
        (
            lambda: kr.losses.AdversarialTraining(
                STEPS, loss=keras.losses.SparseCategoricalCrossentropy()
            ),
            "must agree on whether the model returns logits.*from_logits=False",
        ),
        (
            lambda: kr.losses.AdversarialTraining(STEPS, loss="no_such_loss"),
            "Received: loss='no_such_loss'",
        ),
        (lambda: kr.losses.AdversarialTraining(STEPS, loss=3), "`loss` must be.*loss=3"),
        (
            lambda: kr.losses.AdversarialTraining(STEPS, loss=kr.losses.TRADES(STEPS)),
            "`loss` must be",
        ),
        (lambda: kr.losses.AdversarialTraining(STEPS, reduction="max"), "`reduction`"),
        (lambda: kr.losses.TRADES(STEPS, beta=-1.0), "`beta`.*Received: beta=-1.0"),
        (lambda: kr.losses.TRADES(STEPS, start_stddev=0.0), "`start_stddev`"),
        (lambda: kr.losses.TRADES(kr.attacks.PGD(0.1, num_restarts=2)), "single restart"),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_the_base_class_says_what_to_implement():
    loss = kr.losses.ModelLoss(STEPS)
    with (
        step_scope(Step(linear_model(), X, training=True, loss=loss)),
        pytest.raises(NotImplementedError, match="must implement `training_loss`"),
    ):
        loss(Y, linear_model()(X))
