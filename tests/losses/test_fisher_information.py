"""The Fisher information regularizer agrees with NumPy."""

import keras
import numpy as np
import pytest

import keras_robust as kr

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("networks_in_float32")]

Z = np.array([[1.0, -2.0, 0.5], [0.0, 0.0, 0.0], [-1.0, 3.0, 2.0]], "float32")
LABELS = np.array([0, 2, 2])


def expected(z, labels, zeta, limit=1e4):
    """Computes the loss of each example from the definition."""
    p = np.exp(z.astype("float64"))
    p /= p.sum(1, keepdims=True)
    trace = (1 / p).sum(1)
    with np.errstate(invalid="ignore"):
        cut = np.where(trace > limit, limit * (1 + np.log(np.maximum(trace, limit) / limit)), trace)
    return (1 - zeta) * -np.log(p[np.arange(len(z)), labels]) + zeta * cut


@pytest.mark.parametrize("labels", [LABELS, LABELS[:, None], np.eye(3)[LABELS]], ids=["", "1", "h"])
@pytest.mark.parametrize("zeta", [0.0, 0.25, 1.0])
def test_values(labels, zeta):
    loss = kr.losses.FisherInformation(weight=zeta, reduction=None)
    np.testing.assert_allclose(loss(labels, Z), expected(Z, LABELS, zeta), rtol=1e-5)


def test_penalty_of_simple_probabilities():
    # For p = (1/2, 1/4, 1/4), the penalty is 2 + 4 + 4.
    loss = kr.losses.FisherInformation(weight=1.0)
    z = np.log([[2.0, 1.0, 1.0]]).astype("float32")
    assert float(loss(np.array([0]), z)) == pytest.approx(10, rel=1e-5)
    # The minimum is K^2.
    assert float(loss(np.array([0]), np.zeros((1, 7), "float32"))) == pytest.approx(49, rel=1e-5)


def test_the_cut_is_smooth():
    gaps = np.linspace(0, 12, 49).astype("float32")
    z = np.stack([gaps, 0 * gaps, 0 * gaps], axis=1)
    labels = np.zeros(49, int)
    loss = kr.losses.FisherInformation(weight=1.0, max_inverse=100.0, reduction=None)
    found = np.asarray(loss(labels, z))
    np.testing.assert_allclose(found, expected(z, labels, 1.0, limit=100.0), rtol=1e-4)
    assert found[0] < 100 < found[-1] < 2000

    def slope(gap):
        values = [
            float(loss(labels[:1], np.array([[gap + d, 0.0, 0.0]], "float32"))[0])
            for d in (-0.01, 0.01)
        ]
        return (values[1] - values[0]) / 0.02

    # The cut starts at 1 + 2 e^-g + 2 (e^g + 2) = 100. Below, the slope is that without a cut.
    start_of_cut = np.arccosh((100 - 5) / 4)
    assert slope(start_of_cut - 0.05) == pytest.approx(2 * np.exp(start_of_cut - 0.05), rel=0.02)
    assert slope(start_of_cut + 0.05) == pytest.approx(slope(start_of_cut - 0.05), rel=0.1)


@pytest.mark.parametrize("limit", [1e4, 1e30])
def test_large_logits_do_not_overflow(limit, linear):
    z = np.array([[1000.0, -1000.0, 0.0], [-1000.0, 1000.0, 1000.0]], "float32")
    loss = kr.losses.FisherInformation(weight=0.5, max_inverse=limit, reduction=None)
    # sum_j 1 / p_j is exp(2000) for the first example, and 2 exp(2000) + 4 for the second.
    trace = limit * (1 + np.array([2000, 2000 + np.log(2)]) - np.log(limit))
    cross_entropy = np.array([2000.0, np.log(2)])
    found = loss(np.array([1, 2]), z)
    np.testing.assert_allclose(found, 0.5 * cross_entropy + 0.5 * trace, rtol=1e-4)

    model = linear.make_model()
    model.set_weights([1e3 * linear.weights])
    loss = kr.losses.FisherInformation(weight=0.5, max_inverse=limit)
    history, trained = linear.fit(loss, model=model, learning_rate=1e-6)
    assert np.isfinite(history).all()
    assert np.isfinite(trained.get_weights()[0]).all()


def test_nan_logits_give_nan():
    z = np.array([[float("nan"), 0.0]], "float32")
    assert np.isnan(float(kr.losses.FisherInformation()(np.array([0]), z)))


def test_gradient_agrees_with_finite_differences(linear):
    def reference(weights):
        return expected(linear.x.reshape(12, 6) @ weights, linear.y, 0.1, limit=25.0).mean()

    traces = expected(linear.x.reshape(12, 6) @ linear.weights, linear.y, 1.0)
    assert traces.min() < 25 < traces.max()
    found = linear.gradient(kr.losses.FisherInformation(weight=0.1, max_inverse=25.0))
    np.testing.assert_allclose(found, linear.numerical_gradient(reference), rtol=1e-3, atol=1e-4)


def test_any_keras_model_can_be_trained_with_it(linear):
    model = linear.make_model()
    model.compile(keras.optimizers.SGD(0.0), kr.losses.FisherInformation(weight=0.1))
    per_example = expected(linear.x.reshape(12, 6) @ linear.weights, linear.y, 0.1)
    weight = np.linspace(0.1, 2, 12).astype("float32")
    fitted = model.fit(linear.x, linear.y, batch_size=12, verbose=0).history["loss"][0]
    assert fitted == pytest.approx(per_example.mean(), rel=1e-5)
    value = model.evaluate(linear.x, linear.y, sample_weight=weight, verbose=0)
    assert value == pytest.approx((per_example * weight).mean(), rel=1e-5)
    assert fitted > linear.cross_entropy(linear.x).mean() + 0.5


def test_evaluation_of_a_robust_model_is_the_cross_entropy(linear):
    loss = kr.losses.FisherInformation(weight=0.1, reduction="sum")
    history, robust = linear.fit(loss)
    per_example = expected(linear.x.reshape(12, 6) @ linear.weights, linear.y, 0.1)
    assert history[0] == pytest.approx(per_example.sum(), rel=1e-5)
    plain = linear.cross_entropy(linear.x)
    value = robust.evaluate(linear.x, linear.y, batch_size=12, verbose=0)
    assert value == pytest.approx(plain.sum(), rel=1e-5)


@pytest.mark.slow_on_jax
def test_training_reduces_the_penalty(linear):
    loss = kr.losses.FisherInformation(weight=1.0)
    history, _ = linear.fit(loss, learning_rate=0.02, epochs=25)
    assert history[0] > 20
    assert 9 < history[-1] < 11


def test_mixed_precision(linear):
    loss = kr.losses.FisherInformation(weight=0.1)
    history, _ = linear.fit(loss, model=linear.make_model("mixed_float16"))
    per_example = expected(linear.x.reshape(12, 6) @ linear.weights, linear.y, 0.1)
    assert history[0] == pytest.approx(per_example.mean(), rel=1e-2)


def test_it_can_be_the_loss_of_adversarial_training(linear):
    at = kr.losses.AdversarialTraining(
        kr.attacks.FGSM(0.1), loss=kr.losses.FisherInformation(weight=0.1)
    )
    history, robust = linear.fit(at)
    z = linear.fgsm(linear.x, 0.1).reshape(12, 6) @ linear.weights
    assert history[0] == pytest.approx(expected(z, linear.y, 0.1).mean(), rel=1e-4)
    value = robust.evaluate(linear.x, linear.y, batch_size=12, verbose=0)
    assert value == pytest.approx(linear.cross_entropy(linear.x).mean(), rel=1e-5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: kr.losses.FisherInformation(weight=1.5), "`weight`.*at most 1.*weight=1.5"),
        (lambda: kr.losses.FisherInformation(weight=-0.1), "`weight`.*weight=-0.1"),
        (lambda: kr.losses.FisherInformation(weight=float("nan")), "`weight`.*weight=nan"),
        (lambda: kr.losses.FisherInformation(max_inverse=0.5), "`max_inverse`.*at least 1"),
        (lambda: kr.losses.FisherInformation(max_inverse=1e31), "`max_inverse`"),
        (
            lambda: kr.losses.AdversarialTraining(
                kr.attacks.FGSM(0.1, from_logits=False), loss=kr.losses.FisherInformation()
            ),
            "must agree on whether the model returns logits",
        ),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()
