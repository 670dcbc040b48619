"""MART agrees with NumPy."""

import keras
import numpy as np
import pytest

import keras_robust as kr
from keras_robust.losses.step import Step, step_scope

FGSM = kr.attacks.FGSM(0.2)


def expected(linear, x_adv, beta, weights=None):
    weights = linear.weights if weights is None else weights
    log_p, log_q = (linear.log_softmax(x, weights) for x in (linear.x, x_adv))
    p, q = np.exp(log_p), np.exp(log_q)
    rows = np.arange(12)
    wrong = np.where(np.eye(3)[linear.y] > 0, -1, q).max(1)
    boosted = -log_q[rows, linear.y] - np.log(1.0001 - wrong)
    return boosted + beta * (p * (log_p - log_q)).sum(1) * (1.0000001 - p[rows, linear.y])


@pytest.mark.parametrize("labels", ["integer", "column", "one-hot"])
def test_value_agrees_with_numpy(linear, labels):
    x_adv = linear.fgsm(linear.x, 0.2)
    y = {"integer": linear.y, "column": linear.y[:, None], "one-hot": np.eye(3)[linear.y]}[labels]
    found, robust = linear.fit(kr.losses.MART(FGSM, beta=3.0), y=y)
    assert found[0] == pytest.approx(expected(linear, x_adv, 3.0).mean(), rel=1e-4)
    plain = robust.evaluate(linear.x, y, batch_size=12, verbose=0)
    assert plain == pytest.approx(linear.cross_entropy(linear.x).mean(), rel=1e-5)


def test_value_of_simple_probabilities():
    # For p(x') = (1/4, 1/2, 1/4), p(x) = (1/2, 1/4, 1/4) and label 0, the loss is
    # log 4 - log(1.0001 - 1/2) + 2 (log(2) / 2 - log(2) / 4) (1 - 1/2).
    x = np.log([[2.0, 1.0, 1.0]]).astype("float32")
    x_adv = np.log([[1.0, 2.0, 1.0]]).astype("float32")
    loss = kr.losses.MART(FGSM, beta=2.0)
    with step_scope(Step(lambda z, training: z, x_adv, x, training=True, loss=loss)):
        found = float(loss(np.array([0]), x_adv))
    assert found == pytest.approx(3 * np.log(2) + np.log(2) / 4, rel=1e-3)


@pytest.mark.slow_on_jax
def test_reduction_and_sample_weight(linear):
    per_example = expected(linear, linear.fgsm(linear.x, 0.2), 5.0)
    weight = np.linspace(0, 2, 12).astype("float32")
    loss = kr.losses.MART(FGSM, reduction="sum")
    found = linear.fit(loss, sample_weight=weight)[0][0]
    assert found == pytest.approx((weight * per_example).sum(), rel=1e-4)


def test_gradient_agrees_with_finite_differences(linear):
    x_adv = linear.fgsm(linear.x, 0.2)
    slopes = linear.numerical_gradient(lambda w: expected(linear, x_adv, 3.0, w).mean())
    found = linear.gradient(kr.losses.MART(FGSM, beta=3.0))
    np.testing.assert_allclose(found, slopes, rtol=1e-3, atol=1e-4)


@pytest.mark.slow_on_jax
def test_accuracy_is_adversarial(linear):
    robust = kr.RobustModel(linear.make_model())
    attack = kr.attacks.FGSM(0.3)
    robust.compile(keras.optimizers.SGD(0.0), kr.losses.MART(attack), metrics=["accuracy"])
    history = robust.fit(linear.x, linear.y, batch_size=12, verbose=0).history
    clean, adversarial = (
        (linear.log_softmax(x).argmax(1) == linear.y).mean()
        for x in (linear.x, linear.fgsm(linear.x, 0.3))
    )
    assert history["accuracy"][0] == pytest.approx(adversarial)
    assert clean > adversarial


def test_saturated_probabilities_have_a_finite_loss(linear):
    # Wrong and correct predictions whose float32 probabilities are 0 and 1.
    z = np.array([[200.0, 0.0, -50.0], [0.0, 200.0, 0.0]], "float32")
    loss = kr.losses.MART(FGSM, beta=2.0, reduction=None)
    with step_scope(Step(lambda x, training: x, z, z, training=True, loss=loss)):
        found = np.asarray(loss(np.array([1, 1]), z))
    np.testing.assert_allclose(found, [200 - np.log(1e-4), -np.log(1.0001)], rtol=1e-5, atol=1e-4)

    model = linear.make_model()
    model.set_weights([300 * linear.weights])
    history, trained = linear.fit(kr.losses.MART(FGSM), model=model, learning_rate=0.1, epochs=2)
    assert np.isfinite(history).all()
    assert np.isfinite(trained.get_weights()[0]).all()


@pytest.mark.slow_on_jax
def test_probabilities_and_logits_have_the_same_loss(linear):
    attack = kr.attacks.FGSM(0.2, from_logits=False)
    model = keras.Sequential([linear.make_model(), keras.layers.Softmax()])
    found = linear.fit(kr.losses.MART(attack, beta=3.0), model=model)[0][0]
    x_adv = linear.fgsm(linear.x, 0.2)
    assert found == pytest.approx(expected(linear, x_adv, 3.0).mean(), rel=1e-4)


@pytest.mark.slow_on_jax
def test_mixed_precision_with_a_variable(linear):
    variable = keras.Variable(3.0, trainable=False)
    loss = kr.losses.MART(kr.attacks.PGD(0.1, num_steps=3), beta=variable)
    history, _ = linear.fit(
        loss, model=linear.make_model("mixed_float16"), learning_rate=0.1, epochs=3, eager=False
    )
    assert np.isfinite(history).all()
    assert history[-1] < history[0]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: kr.losses.MART(None), "`attack` must be"),
        (lambda: kr.losses.MART(kr.attacks.PGD(0.1, targeted=True)), "must be untargeted"),
        (lambda: kr.losses.MART(FGSM, beta=-1.0), r"`beta`.*Received: beta=-1\.0"),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()
