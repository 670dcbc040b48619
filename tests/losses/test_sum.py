"""Sums of losses agree with their parts."""

import keras
import numpy as np
import pytest

import keras_robust as kr

FGSM = kr.attacks.FGSM(0.1)
AT = kr.losses.AdversarialTraining(FGSM)
FISHER = kr.losses.FisherInformation(weight=0.25)


@keras.saving.register_keras_serializable(package="test_sum")
class Passes(keras.layers.Layer):
    """Counts forward passes in training mode, and may add the mean of its input to the loss."""

    count = 0

    def __init__(self, penalty=0.0, **kwargs):
        super().__init__(**kwargs)
        self.penalty = penalty

    def call(self, inputs, training=False):
        Passes.count += bool(training)
        if self.penalty:
            self.add_loss(self.penalty * keras.ops.mean(inputs))
        return inputs


def fisher(linear, x):
    log_p = linear.log_softmax(x)
    return 0.75 * -log_p[np.arange(12), linear.y] + 0.25 * np.exp(-log_p).sum(1)


@pytest.mark.slow_on_jax
def test_adversarial_training_and_fisher_information(linear):
    adversarial = linear.cross_entropy(linear.fgsm(linear.x, 0.1))
    per_example = adversarial + fisher(linear, linear.x)
    assert linear.fit(AT + FISHER)[0][0] == pytest.approx(per_example.mean(), rel=1e-4)
    # In any order, each loss uses its own images.
    assert linear.fit(FISHER + AT)[0][0] == pytest.approx(per_example.mean(), rel=1e-4)


@pytest.mark.slow_on_jax
def test_weights_and_sample_weight(linear):
    adversarial = linear.cross_entropy(linear.fgsm(linear.x, 0.1))
    per_example = 0.5 * adversarial + 3 * fisher(linear, linear.x)
    total = kr.losses.Sum([AT, FISHER], weights=(0.5, 3))
    assert linear.fit(total)[0][0] == pytest.approx(per_example.mean(), rel=1e-4)
    sample_weight = np.linspace(0, 2, 12).astype("float32")
    found = linear.fit(total, sample_weight=sample_weight)[0][0]
    assert found == pytest.approx((per_example * sample_weight).mean(), rel=1e-4)
    total = kr.losses.Sum([AT, FISHER], weights=[0.5, 3], reduction="sum")
    assert linear.fit(total)[0][0] == pytest.approx(per_example.sum(), rel=1e-4)


def test_gradient_agrees_with_finite_differences(linear):
    x_adv = linear.fgsm(linear.x, 0.1)

    def reference(weights):
        log_p = linear.log_softmax(linear.x, weights)
        clean = 0.75 * -log_p[np.arange(12), linear.y] + 0.25 * np.exp(-log_p).sum(1)
        return (clean + linear.cross_entropy(x_adv, weights)).mean()

    expected = linear.numerical_gradient(reference)
    np.testing.assert_allclose(linear.gradient(AT + FISHER), expected, rtol=1e-3, atol=1e-4)


def test_accuracy_is_on_the_images_of_the_first_loss(linear):
    at = kr.losses.AdversarialTraining(kr.attacks.FGSM(0.3))
    x_adv = linear.fgsm(linear.x, 0.3)
    clean, adversarial = (
        (linear.log_softmax(x).argmax(1) == linear.y).mean() for x in (linear.x, x_adv)
    )
    assert clean != adversarial
    for loss, expected in ((at + FISHER, adversarial), (FISHER + at, clean)):
        robust = kr.RobustModel(linear.make_model())
        robust.compile(keras.optimizers.SGD(0.0), loss, metrics=["accuracy"])
        history = robust.fit(linear.x, linear.y, batch_size=12, verbose=0).history
        assert history["accuracy"][0] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("loss", "count"),
    [
        (AT, 1),
        (AT + FISHER, 2),
        (FISHER + AT, 2),
        (FISHER + AT + FISHER + keras.losses.SparseCategoricalCrossentropy(from_logits=True), 2),
        (kr.losses.Sum([FISHER, FISHER]), 1),
        # TRADES shares the pass on clean images, and has a second one.
        (kr.losses.TRADES(kr.attacks.PGD(0.1, num_steps=1)) + FISHER, 2),
        (AT + kr.losses.AdversarialTraining(kr.attacks.FGSM(0.05)), 2),
    ],
    ids=["one", "two", "reversed", "clean", "plain", "trades", "two-attacks"],
)
def test_losses_on_the_same_images_share_a_forward_pass(linear, loss, count):
    robust = kr.RobustModel(keras.Sequential([Passes(), linear.make_model()]))
    robust.compile(keras.optimizers.SGD(0.0), loss, run_eagerly=True)
    robust.train_on_batch(linear.x, linear.y)
    Passes.count = 0
    robust.train_on_batch(linear.x, linear.y)
    assert Passes.count == count


def test_penalties_of_layers_are_on_the_images_of_the_first_loss(linear):
    def penalty(loss):
        values = []
        for weight in (0.0, 1.0):
            model = keras.Sequential([Passes(weight), linear.make_model()])
            values.append(linear.fit(loss, model=model)[0][0])
        return values[1] - values[0]

    assert penalty(FISHER + AT) == pytest.approx(linear.x.mean(), rel=1e-4)
    x_adv = linear.fgsm(linear.x, 0.1)
    assert abs(x_adv.mean() - linear.x.mean()) > 1e-3
    assert penalty(AT + FISHER) == pytest.approx(x_adv.mean(), rel=1e-4)


def test_plain_losses_can_be_added_from_both_sides(linear):
    plain = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    clean = linear.cross_entropy(linear.x).mean()
    expected = clean + linear.cross_entropy(linear.fgsm(linear.x, 0.1)).mean()
    for loss in (plain + AT, AT + plain):
        assert linear.fit(loss)[0][0] == pytest.approx(expected, rel=1e-4)


def test_plus_and_the_builtin_sum(linear):
    model = linear.make_model()
    model.compile("sgd", FISHER + FISHER)
    expected = 2 * fisher(linear, linear.x).mean()
    assert model.evaluate(linear.x, linear.y, verbose=0) == pytest.approx(expected, rel=1e-5)
    mahalanobis = kr.losses.MaxMahalanobis()
    assert (mahalanobis + FISHER).losses == [mahalanobis, FISHER]
    assert (AT + kr.losses.Sum([FISHER], reduction="sum")).reduction == "sum"
    total = sum([FISHER, AT, AT])
    assert total.losses == [FISHER, AT, AT]
    assert total.weights == [1, 1, 1]
    for other in (1, "mse", None):
        with pytest.raises(ValueError, match="Argument `losses`"):
            FISHER + other


def test_sums_of_plain_losses_need_no_robust_model(linear):
    plain = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model = linear.make_model()
    model.compile("sgd", kr.losses.Sum([plain, FISHER], weights=[2, 1]))
    expected = 2 * linear.cross_entropy(linear.x) + fisher(linear, linear.x)
    found = model.evaluate(linear.x, linear.y, verbose=0)
    assert found == pytest.approx(expected.mean(), rel=1e-5)
    model.compile("sgd", plain + AT)
    with pytest.raises(ValueError, match="wrap the model"):
        model.fit(linear.x, linear.y, verbose=0)


def test_evaluation_only_uses_the_first_loss(linear):
    for loss in (AT + FISHER, FISHER + AT, kr.losses.Sum([AT, FISHER], weights=[3, 5])):
        _, robust = linear.fit(loss)
        found = robust.evaluate(linear.x, linear.y, batch_size=12, verbose=0)
        assert found == pytest.approx(linear.cross_entropy(linear.x).mean(), rel=1e-5)


@pytest.mark.slow_on_jax
def test_nested_sums(linear):
    adversarial = linear.cross_entropy(linear.fgsm(linear.x, 0.1))
    clean = fisher(linear, linear.x)
    inner = kr.losses.Sum([AT, FISHER], weights=[0.5, 2])
    nested = kr.losses.Sum([FISHER, inner], weights=[1, 3])
    expected = (clean + 1.5 * adversarial + 6 * clean).mean()
    assert linear.fit(nested)[0][0] == pytest.approx(expected, rel=1e-4)
    # Adding a loss to a sum extends the sum.
    for joined in (inner + FISHER, FISHER + inner):
        assert len(joined.losses) == 3
        expected = (clean + 0.5 * adversarial + 2 * clean).mean()
        assert linear.fit(joined)[0][0] == pytest.approx(expected, rel=1e-4)
    both = inner + inner
    assert len(both.losses) == 4
    assert linear.fit(both)[0][0] == pytest.approx((adversarial + 4 * clean).mean(), rel=1e-4)


@pytest.mark.slow
@pytest.mark.slow_on_jax
def test_graph_interpolation_in_a_sum():
    rng = np.random.default_rng(0)
    x, y = rng.random((24, 6)).astype("float32"), np.arange(24) % 3
    gi = kr.losses.GraphInterpolation(linear_weight=0.5)
    plain = kr.losses.FisherInformation(weight=0.0)

    def value(loss):
        keras.utils.set_random_seed(1)
        head = kr.layers.WNLLHead(3, num_neighbors=8, sigma_neighbor=4, template_size=20)
        robust = kr.RobustModel(keras.Sequential([keras.Input((6,)), head]))
        robust.compile(keras.optimizers.SGD(0.0), loss)
        return robust.fit(x, y, batch_size=24, shuffle=False, verbose=0).history["loss"][0]

    separate = value(gi), value(plain)
    assert abs(separate[0] - separate[1]) > 0.05
    assert value(plain + gi) == pytest.approx(sum(separate), rel=1e-5)


def test_keras_file(linear, tmp_path):
    variable = keras.Variable(0.5, trainable=False)
    loss = kr.losses.Sum([AT, kr.losses.Sum([FISHER])], weights=[variable, 2.0], name="both")
    history, robust = linear.fit(loss)
    robust.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    assert isinstance(again.loss, kr.losses.Sum)
    assert again.loss.name == "both"
    assert [type(part) for part in again.loss.losses] == [type(AT), kr.losses.Sum]
    assert float(again.loss.weights[0].value) == 0.5
    again.loss.weights[0].assign(1.5)
    value = again.fit(linear.x, linear.y, batch_size=12, shuffle=False, verbose=0).history["loss"]
    adversarial = linear.cross_entropy(linear.fgsm(linear.x, 0.1)).mean()
    assert value[0] == pytest.approx(history[0] + adversarial, rel=1e-4)


def test_mixed_precision(linear):
    history, _ = linear.fit(AT + FISHER, model=linear.make_model("mixed_float16"))
    adversarial = linear.cross_entropy(linear.fgsm(linear.x, 0.1))
    expected = (adversarial + fisher(linear, linear.x)).mean()
    assert history[0] == pytest.approx(expected, rel=2e-2)


PROBABILITIES = kr.losses.AdversarialTraining(kr.attacks.FGSM(0.1, from_logits=False))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: kr.losses.Sum([]), "`losses` must be a list"),
        (lambda: kr.losses.Sum(AT), "`losses` must be a list"),
        (lambda: AT + 1.0, "`losses` must be a list.*1.0"),
        (lambda: kr.losses.Sum([AT], weights=0.5), "`weights` must have.*weights=0.5"),
        (lambda: kr.losses.Sum([AT], weights=[1, 2]), "`weights` must have one weight"),
        (lambda: kr.losses.Sum([AT, AT], weights=[]), "`weights` must have one weight"),
        (lambda: kr.losses.Sum([AT], weights=[-1.0]), "`weights`.*-1.0"),
        (lambda: kr.losses.Sum([AT], weights=[float("nan")]), "`weights`.*nan"),
        (lambda: AT + PROBABILITIES, "must agree on `from_logits`"),
        (lambda: FISHER + PROBABILITIES, "must agree on `from_logits`"),
        (lambda: kr.losses.Sum([kr.losses.Sum([AT]), PROBABILITIES]), "must agree"),
        (lambda: AT + keras.losses.SparseCategoricalCrossentropy(), "must agree on `from_logits`"),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_loss_without_from_logits_agrees_with_both():
    hinge = kr.losses.Sum([keras.losses.CategoricalHinge()])
    kr.losses.Sum([hinge, PROBABILITIES])
    kr.losses.Sum([hinge, AT])
