"""Validity checks flag masked gradients, pass for sound models, and report exact figures."""

import json
from typing import ClassVar

import keras
import numpy as np
import pytest
import scipy.stats
from keras import ops

import keras_robust as kr
from keras_robust.evaluation.checks.above_chance import compared_with_chance
from keras_robust.evaluation.checks.case import Case
from keras_robust.evaluation.checks.outcome import compared
from keras_robust.evaluation.checks.registry import CHECKS
from keras_robust.evaluation.checks.statistics import binomial_tail, sign_test
from keras_robust.model.classifier import Classifier

pytestmark = pytest.mark.slow_on_jax

BELOW_CLEAN, NO_WEAKER, MORE_STEPS, SINGLE_STEP, SQUARE, TRANSFER, NOISE, CHANCE, UNBOUNDED = list(
    CHECKS
)[:9]
FINITE, NOT_ZERO, DIFFERENCES, LOGITS, FEATURES, DETERMINISTIC, ABOVE_CHANCE = list(CHECKS)[9:]
PGD = kr.attacks.PGD(0.1, num_steps=20)


def name_of(value):
    """Returns the id of a parameter: the names of arguments, or `None` for pytest's default."""
    return ", ".join(value) if isinstance(value, dict) else None


def dense(activation="relu"):
    return keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            keras.layers.Flatten(),
            keras.layers.Dense(64, activation=activation, name="hidden"),
            keras.layers.Dense(10),
        ]
    )


def trained(model, data, loss=None, epochs=2):
    (x, y), _ = data
    loss = loss or keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    keras.utils.set_random_seed(0)
    wrapped = kr.RobustModel(model)
    wrapped.compile(keras.optimizers.Adam(2e-3), loss)
    wrapped.fit(x, y, batch_size=128, epochs=epochs, verbose=0)
    return model


@pytest.fixture(scope="module")
def natural(embedded_data):
    return trained(dense(), embedded_data)


@pytest.fixture(scope="module")
def adversarially_trained(embedded_data):
    loss = kr.losses.AdversarialTraining(kr.attacks.PGD(0.1, num_steps=7))
    return trained(dense(), embedded_data, loss)


def with_layer_before(layer, model):
    """Returns the model with another layer in front."""
    layer = layer if isinstance(layer, keras.layers.Layer) else keras.layers.Lambda(layer)
    return keras.Sequential([keras.Input((28, 28, 1)), layer, model])


def quantize(x):
    return ops.round(3 * x) / 3


def quantize_with_straight_through_gradient(x):
    return x + ops.stop_gradient(quantize(x) - x)


class Noise(keras.layers.Layer):
    """Adds noise, also in inference mode."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.generator = keras.random.SeedGenerator(0)

    def call(self, x):
        return x + 0.2 * keras.random.normal(ops.shape(x), seed=self.generator)


def checked(model, data, **arguments):
    x, y = data[1]
    arguments = {"attack": PGD, "verbose": 0, **arguments}
    results = kr.evaluation.check(model, x[:400], y[:400], **arguments)
    assert [result.name for result in results] == list(CHECKS)
    json.dumps([result.to_dict() for result in results], allow_nan=False)
    return {result.name: result for result in results}


def case(model, x, y, attack=PGD, **arguments):
    arguments = {"name": "PGD", "epsilon": attack.epsilon, "norm": "linf", "batch_size": 100,
                 "seed": 0, **arguments}  # fmt: skip
    if "transfer_from" in arguments:
        arguments["transfer_from"] = Classifier(arguments["transfer_from"])
    return Case(classifier=Classifier(model), x=x, y=y, attack=attack, **arguments)


def correct_case(model, data, **arguments):
    """Returns a case of 50 examples that `model` classifies correctly."""
    x, y = data[1]
    chosen = np.flatnonzero(model.predict(x[:400], verbose=0).argmax(axis=1) == y[:400])[:50]
    return case(model, x[chosen], y[chosen], **arguments)


# Images of one pixel with 200 distances to the threshold, half of them on each side.
DISTANCES = np.tile(np.linspace(0.002, 0.4985, 100, dtype="float32"), 2)
LABELS = np.repeat([0, 1], 100)
PIXELS = (0.5 + (2 * LABELS - 1) * DISTANCES).astype("float32").reshape(-1, 1, 1, 1)


def threshold(x, slope=10.0):
    """Predicts class 1 if the pixel is greater than 0.5."""
    z = slope * (x[:, 0, 0, 0] - 0.5)
    return ops.stack([-z, z], axis=1)


def without_gradient(x):
    """Computes the outputs of `threshold` with a gradient of 0."""
    return threshold(ops.stop_gradient(x)) + 0 * threshold(x)


def failures(results):
    return {name for name, result in results.items() if result.passed is False}


@pytest.mark.slow
def test_an_adversarially_trained_model_passes_every_check(
    adversarially_trained, natural, embedded_data
):
    results = checked(adversarially_trained, embedded_data, transfer_from=natural)
    assert {name for name, result in results.items() if result.passed is not True} == set()
    assert 0.3 < results[NO_WEAKER].figures["accuracy"] < 0.95


def test_a_naturally_trained_model_passes_every_check(trained_model, embedded_data):
    results = checked(trained_model, embedded_data, num_examples=60)
    assert {name for name, result in results.items() if result.passed is not True} == {TRANSFER}


def test_logits_times_1000_are_flagged(natural, embedded_data):
    scaled = keras.Sequential([keras.Input((28, 28, 1)), natural, keras.layers.Rescaling(1000.0)])
    results = checked(scaled, embedded_data)
    assert failures(results) == {NOT_ZERO, LOGITS}
    assert results[NOT_ZERO].figures["share_zero"] == 0
    assert results[NOT_ZERO].figures["share_zero_cross_entropy"] > 0.5


def test_a_quantized_input_is_flagged(natural, embedded_data):
    results = checked(with_layer_before(quantize, natural), embedded_data)
    assert {NOT_ZERO, DIFFERENCES} <= failures(results)
    if keras.backend.backend() == "tensorflow":
        assert FINITE in failures(results)
        assert results[MORE_STEPS].passed is None
        assert "no gradient with respect to its input" in results[MORE_STEPS].sentence
    else:
        assert {SQUARE, CHANCE, UNBOUNDED} <= failures(results)
        assert results[NOT_ZERO].figures["share_zero"] == 1
    assert results[LOGITS].passed
    assert results[DETERMINISTIC].passed


def test_tanh_with_weights_times_50_is_flagged(embedded_data):
    model = trained(dense("tanh"), embedded_data)
    assert CHECKS[FEATURES](correct_case(model, embedded_data)).passed
    hidden = model.get_layer("hidden")
    kernel, bias = (50 * values for values in hidden.get_weights())
    hidden.set_weights([kernel, bias])
    subject = correct_case(model, embedded_data)
    outcome = CHECKS[FEATURES](subject)
    expected = np.tanh(subject.x.reshape(50, -1) @ kernel + bias)
    share = outcome.figures["share_flat_hidden"]
    assert outcome.passed is False
    np.testing.assert_allclose(share, (abs(expected) > 0.999).mean(), atol=1e-3)
    np.testing.assert_allclose(outcome.figures["share_flat_features"], share, atol=1e-6)


def test_other_kinds_of_saturated_layers(natural, embedded_data):
    x, y = embedded_data[1]
    for layer, passed in [
        (keras.layers.Dense(20, activation="sigmoid", name="hidden"), True),
        (keras.layers.Dense(20, activation="sigmoid", name="hidden",
                            kernel_initializer=keras.initializers.RandomNormal(stddev=20)), False),
        (keras.layers.Activation("hard_tanh", name="hidden"), True),
        (keras.layers.Lambda(lambda x: ops.tanh(100 * (x + 0.1))), False),
        (keras.layers.Rescaling(2.0, offset=-1.0), True),
    ]:  # fmt: skip
        model = keras.Sequential(
            [keras.Input((28, 28, 1)), keras.layers.Flatten(), layer, keras.layers.Dense(10)]
        )
        assert CHECKS[FEATURES](case(model, x[:50], y[:50])).passed is passed, layer
    head = kr.layers.TanhClassifier(10)
    model = keras.Sequential(
        [keras.Input((28, 28, 1)), keras.layers.Flatten(), keras.layers.Rescaling(100, 10.0), head]
    )
    assert CHECKS[FEATURES](case(model, x[:50], y[:50])).passed is False
    assert CHECKS[FEATURES](case(threshold, PIXELS, LABELS)).passed is None


def test_random_models_are_flagged_unless_draws_are_averaged(natural, embedded_data):
    noisy = with_layer_before(Noise(), natural)
    x, y = embedded_data[1]
    outcome = CHECKS[DETERMINISTIC](case(noisy, x[:50], y[:50]))
    assert outcome.passed is False
    assert "num_samples" in outcome.sentence
    assert outcome.figures["largest_relative_change"] > 0.05
    averaging = kr.attacks.PGD(0.1, num_samples=5)
    assert CHECKS[DETERMINISTIC](case(noisy, x[:50], y[:50], averaging)).passed
    outcome = CHECKS[DETERMINISTIC](case(natural, x[:50], y[:50]))
    assert outcome.passed
    assert outcome.figures["largest_relative_change"] < 1e-5
    # Both sides of the difference use the same draws, so noise does not make the gradient wrong.
    assert CHECKS[DIFFERENCES](case(noisy, x[:50], y[:50])).passed


@pytest.mark.parametrize(
    ("factor", "passed"), [(1.0, True), (0.9, True), (0.5, False), (-1, False)]
)
def test_the_error_of_a_scaled_gradient_is_known(natural, embedded_data, factor, passed):
    # For c times the true gradient, |c g - g| / max(|c g|, |g|) = |c - 1| / max(|c|, 1).
    model = with_layer_before(lambda x: ops.stop_gradient((1 - factor) * x) + factor * x, natural)
    x, y = embedded_data[1]
    outcome = CHECKS[DIFFERENCES](case(model, x[:50], y[:50]))
    assert outcome.passed is passed
    expected = abs(factor - 1) / max(abs(factor), 1)
    np.testing.assert_allclose(outcome.figures["median_relative_error"], expected, atol=0.01)


@pytest.mark.parametrize("scale", [1.0, 1000.0])
@pytest.mark.parametrize("low", [0.0, -100.0])
def test_finite_differences_do_not_depend_on_units(natural, embedded_data, scale, low):
    # The same model on images with another range, and with scaled logits.
    rescale = keras.layers.Rescaling(1 / 255, offset=-low / 255)
    model = keras.Sequential(
        [keras.Input((28, 28, 1)), rescale, natural, keras.layers.Rescaling(scale)]
    )
    attack = kr.attacks.PGD(25.5, bounds=(low, low + 255.0))
    x, y = embedded_data[1]
    outcome = CHECKS[DIFFERENCES](case(model, 255 * x[:50] + low, y[:50], attack))
    assert outcome.figures["median_relative_error"] < 0.02


def test_straight_through_gradients_are_flagged(natural, embedded_data):
    x, y = embedded_data[1]
    model = with_layer_before(quantize_with_straight_through_gradient, natural)
    outcome = CHECKS[DIFFERENCES](case(model, x[:50], y[:50]))
    assert outcome.passed is False
    assert outcome.figures["median_relative_error"] > 0.5
    assert CHECKS[NOT_ZERO](case(model, x[:50], y[:50])).passed


def test_max_pooling_over_a_black_background_passes(embedded_data):
    # In a black window all values are equal, so the gradient is not the derivative.
    model = keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            keras.layers.MaxPooling2D(4),
            keras.layers.Flatten(),
            keras.layers.Dense(10),
        ]
    )
    x, y = embedded_data[1]
    assert CHECKS[DIFFERENCES](case(model, x[:50], y[:50])).figures["median_relative_error"] < 0.05


def test_half_precision_is_too_coarse_for_finite_differences(natural, embedded_data):
    x, y = embedded_data[1]
    layer = keras.layers.Lambda(quantize_with_straight_through_gradient, dtype="mixed_float16")
    outcome = CHECKS[DIFFERENCES](case(with_layer_before(layer, natural), x[:50], y[:50]))
    assert outcome.passed is None
    assert "half precision" in outcome.sentence


def test_a_shattered_gradient_is_flagged(natural, embedded_data):
    # The gradient is exact, but its direction is arbitrary, so PGD only finds its random start.
    model = with_layer_before(lambda x: x + 0.1 * ops.sin(1000 * x), natural)
    subject = correct_case(model, embedded_data)
    assert CHECKS[DIFFERENCES](subject).passed
    assert CHECKS[CHANCE](subject).passed is False
    assert CHECKS[SQUARE](subject).passed is False


def test_flat_outputs_cannot_be_compared():
    def flat(x):
        return threshold(ops.stop_gradient(ops.sign(x - 0.5)) + 0 * x)

    far = DISTANCES > 0.05
    outcome = CHECKS[DIFFERENCES](case(flat, PIXELS[far], LABELS[far]))
    assert outcome.passed is None
    assert "do not change" in outcome.sentence


def test_an_objective_is_checked_in_place_of_the_model(natural, embedded_data):
    layer = keras.layers.Lambda(quantize, name="quantize")
    attack = kr.attacks.PGD(0.1, num_steps=20, objective=kr.attacks.BPDA("quantize"))
    subject = correct_case(with_layer_before(layer, natural), embedded_data, attack=attack)
    for name in (FINITE, NOT_ZERO, CHANCE):
        assert CHECKS[name](subject).passed
    assert "share_zero_cross_entropy" not in CHECKS[NOT_ZERO](subject).figures
    outcome = CHECKS[DIFFERENCES](subject)
    assert outcome.passed is None
    assert "follows its `objective`" in outcome.sentence


def test_accuracies_are_exact_for_a_sound_gradient():
    subject = case(threshold, PIXELS, LABELS)
    fooled = int((DISTANCES < 0.1).sum())
    assert CHECKS[BELOW_CLEAN](subject).figures == {"num_examples": 200, "num_fooled": fooled}
    for name in (NO_WEAKER, SINGLE_STEP, SQUARE, NOISE):
        outcome = CHECKS[name](subject)
        assert outcome.passed
        assert (
            outcome.figures["accuracy"] == outcome.figures["compared_accuracy"] == 1 - fooled / 200
        )
    assert CHECKS[MORE_STEPS](subject).passed
    assert CHECKS[CHANCE](subject).figures["accuracy"] == 0
    assert CHECKS[CHANCE](subject).figures["chance"] == 0.5
    assert CHECKS[UNBOUNDED](subject).passed


def test_attacks_without_gradient_flag_a_gradient_of_zero():
    subject = case(without_gradient, PIXELS, LABELS)
    # Square and noise fool all examples inside the radius. PGD stays at its random start, and only
    # fools a quarter of them, also at an epsilon of 0.5.
    fooled = int((DISTANCES < 0.1).sum())
    for name in (SQUARE, NOISE):
        outcome = CHECKS[name](subject)
        assert outcome.passed is False
        assert outcome.figures["compared_accuracy"] == 1 - fooled / 200
    assert CHECKS[CHANCE](subject).passed is False
    assert CHECKS[UNBOUNDED](subject).passed is False
    assert CHECKS[NOT_ZERO](subject).figures["share_zero"] == 1


class Nothing(kr.attacks.Attack):
    """Returns the images unchanged."""

    epsilon, norm = 0.1, "linf"

    def generate(self, problem, x, start, index, seed):
        return x


def test_an_attack_that_does_nothing_is_flagged():
    subject = case(threshold, PIXELS, LABELS, Nothing())
    outcome = CHECKS[NO_WEAKER](subject)
    assert outcome.passed is False
    assert outcome.figures["fooled_by_the_other_alone"] == (DISTANCES < 0.1).sum()
    assert CHECKS[BELOW_CLEAN](subject).passed is False
    # Other attacks show that the model is sound.
    assert CHECKS[SQUARE](subject).passed


def test_unfooled_examples_only_count_if_many_and_at_a_large_radius():
    def outcome(epsilon, num=200, **arguments):
        attack = kr.attacks.FGSM(epsilon)
        return CHECKS[BELOW_CLEAN](
            case(without_gradient, PIXELS[:num], LABELS[:num], attack, **arguments)
        )

    assert outcome(8 / 255).passed is False
    assert outcome(7 / 255).passed is None
    assert outcome(0.1, num=80).passed is None
    assert outcome(0.1, num=80, counts=(1000, 0)).passed is False
    assert outcome(0.1, num=80, counts=(1000, 1)).passed


@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_other_norms(norm):
    attack = kr.attacks.PGD(0.1, norm=norm)
    fooled = int((DISTANCES < 0.1).sum())
    for name, model, passed in [
        (SQUARE, threshold, True),
        (NOISE, threshold, True),
        (NOISE, without_gradient, False),
    ]:
        outcome = CHECKS[name](case(model, PIXELS, LABELS, attack, norm=norm))
        assert outcome.passed is passed
        assert outcome.figures["compared_accuracy"] == 1 - fooled / 200
    images = np.full((4, 8, 8, 1), 0.5, "float32")
    size = {"l2": 8, "l1": 64}[norm]
    assert case(threshold, images, LABELS[:4], attack, norm=norm).radius(0.5) == 0.5 * size
    assert case(threshold, images, LABELS[:4]).radius(0.5) == 0.5


def test_transfer_flags_a_gradient_of_zero():
    def outcome(model):
        subject = case(model, PIXELS, LABELS, transfer_from=lambda x: threshold(x, slope=3.0))
        return CHECKS[TRANSFER](subject)

    fooled = int((DISTANCES < 0.1).sum())
    assert outcome(threshold).passed
    assert outcome(without_gradient).passed is False
    assert outcome(without_gradient).figures["compared_accuracy"] == 1 - fooled / 200


def test_transfer_attacks_the_other_model_by_its_own_gradient(natural, embedded_data):
    # The other model does not have the layer that the objective replaces.
    layer = keras.layers.Lambda(quantize, name="quantize")
    attack = kr.attacks.PGD(0.1, num_steps=20, objective=kr.attacks.BPDA("quantize"))
    subject = correct_case(
        with_layer_before(layer, natural), embedded_data, attack=attack, transfer_from=natural
    )
    outcome = CHECKS[TRANSFER](subject)
    assert outcome.passed
    assert outcome.figures["compared_accuracy"] < 0.5


def test_zero_gradients_and_certain_outputs_are_counted():
    # The margin is 2 * 1000 * distance. In float32, exp(-margin) is 0 for margins from 104 (88 if
    # subnormal numbers are flushed), and 1 + exp(-margin) is 1 for margins from 17.4, and not up to
    # 16.6.
    distances = np.repeat(np.array([0.004, 0.03, 0.1], "float32"), [10, 20, 30])
    labels = np.arange(60) % 2
    x = (0.5 + (2 * labels - 1) * distances).astype("float32").reshape(-1, 1, 1, 1)

    def logits(x):
        return threshold(x, 1000.0)

    outcome = CHECKS[NOT_ZERO](case(logits, x, labels))
    assert outcome.figures == {"share_zero": 0, "share_zero_cross_entropy": 0.5}
    assert outcome.passed is False
    assert "libraries that maximize the cross-entropy" in outcome.sentence
    outcome = CHECKS[LOGITS](case(logits, x, labels))
    np.testing.assert_allclose(outcome.figures["share_certain"], 50 / 60)
    assert outcome.passed is False

    subject = case(
        lambda x: ops.softmax(logits(x)), x, labels, kr.attacks.PGD(0.1, from_logits=False)
    )
    np.testing.assert_allclose(CHECKS[LOGITS](subject).figures["share_certain"], 50 / 60)
    # The softmax of a callable cannot be skipped, and its probabilities below 1e-37 are lost.
    assert CHECKS[NOT_ZERO](subject).figures == {"share_zero": 0.5}


def test_gradients_that_are_not_finite_are_counted():
    x = PIXELS.copy()
    x[:30] = 0

    def model(x):
        z = ops.sqrt(x[:, 0, 0, 0]) - 0.7
        return ops.stack([-z, z], axis=1)

    outcome = CHECKS[FINITE](case(model, x, LABELS))
    assert outcome.passed is False
    assert outcome.figures["share_not_finite"] == 30 / 200
    assert CHECKS[FINITE](case(model, PIXELS, LABELS)).passed


@pytest.mark.parametrize(("against", "in_favour"), [(0, 0), (3, 0), (7, 0), (12, 3), (2, 40)])
def test_sign_test(against, in_favour):
    trials = against + in_favour
    expected = 1.0
    if trials:
        expected = scipy.stats.binomtest(against, trials, 0.5, alternative="greater").pvalue
    np.testing.assert_allclose(sign_test(against, in_favour), expected)


@pytest.mark.parametrize(
    ("successes", "trials", "chance"),
    [
        (0, 5, 0.1),
        (18, 100, 0.1),
        (9, 9, 0.5),
        (1000, 1000, 0.999),
        (4, 5, 1.0),
        (1, 5, 0.0),
        (1050, 10_000, 0.1),
        (49_000, 50_000, 0.98),
        (9_990, 10_000, 0.5),
    ],
)
def test_binomial_tail(successes, trials, chance):
    expected = scipy.stats.binomtest(successes, trials, chance, alternative="greater").pvalue
    np.testing.assert_allclose(binomial_tail(successes, trials, chance), expected, rtol=1e-6)


def labels_and_predictions(shares, accuracies, count, predicted=None):
    """Returns labels with `shares` of each class, and predictions with `accuracies` per class.

    Wrong predictions are the next class, or always the class `predicted`.
    """
    counts = np.round(count * np.array(shares)).astype(int)
    labels = np.repeat(np.arange(len(counts)), counts)
    right = np.concatenate(
        [np.arange(n) < round(n * a) for n, a in zip(counts, accuracies, strict=True)]
    )
    wrong = (labels + 1) % len(counts) if predicted is None else np.full_like(labels, predicted)
    return labels, np.where(right, labels, wrong)


@pytest.mark.parametrize(
    ("given", "passed"),
    [
        # A good and a poor model of ten classes.
        (labels_and_predictions([0.1] * 10, [0.9] * 10, 200), True),
        (labels_and_predictions([0.1] * 10, [0.25] * 10, 200), True),
        # Ten classes: only guesses, always the same class, always wrong.
        (labels_and_predictions([0.1] * 10, [0.1] * 10, 200), False),
        (labels_and_predictions([0.1] * 10, [0.0] * 10, 200, predicted=3), False),
        (labels_and_predictions([0.1] * 10, [0.0] * 10, 200), False),
        # 90% are of one class. Always predicting it is no better than chance.
        (labels_and_predictions([0.9, 0.1], [1.0, 0.0], 200), False),
        (labels_and_predictions([0.1, 0.9], [0.0, 1.0], 200), False),
        (labels_and_predictions([0.9, 0.1], [0.95, 0.75], 200), True),
        # An accuracy of 10%, which is that of always predicting the rare class.
        (labels_and_predictions([0.9, 0.1], [0.0, 1.0], 200), False),
        # Too few examples to decide, and few that suffice.
        (labels_and_predictions([0.5, 0.5], [0.5, 0.5], 8), None),
        (labels_and_predictions([0.9, 0.1], [1.0, 0.0], 20), None),
        (labels_and_predictions([0.1] * 10, [1.0] * 10, 10), True),
        (labels_and_predictions([0.1] * 10, [0.0] * 10, 10), False),
        # All examples are of one class.
        (labels_and_predictions([1.0, 0.0], [0.9, 0.0], 200), None),
        # Many examples.
        (labels_and_predictions([0.1] * 10, [0.1] * 10, 50_000), False),
        (labels_and_predictions([0.1] * 10, [0.11] * 10, 50_000), True),
    ],
)
def test_clean_accuracy_against_chance(given, passed):
    outcome = compared_with_chance(*given)
    assert outcome.passed is passed
    if outcome.figures:
        labels, classes = given
        table = np.zeros((10, 10))
        np.add.at(table, given, 1)
        # As in Cohen's kappa.
        expected = (table.sum(0) * table.sum(1)).sum() / table.sum() ** 2
        assert outcome.figures["chance"] == pytest.approx(expected)
        assert outcome.figures["accuracy"] == (labels == classes).mean()
        p_value = scipy.stats.binom.sf((labels == classes).sum() - 1, len(labels), expected)
        assert outcome.figures["p_value"] == pytest.approx(p_value, rel=1e-6, abs=1e-300)


def test_random_guesses_rarely_pass_as_above_chance():
    rng = np.random.default_rng(0)
    labels, classes = rng.integers(0, 10, (2, 2000, 200))
    outcomes = [compared_with_chance(*pair).passed for pair in zip(labels, classes, strict=True)]
    assert outcomes.count(True) <= 40  # At most 20 are expected, and 40 are practically impossible.
    assert outcomes.count(False) >= 1950


def test_chance_may_be_given():
    labels, classes = labels_and_predictions([0.1] * 10, [0.25] * 10, 200)
    outcome = compared_with_chance(labels, classes, chance=0.25)
    assert outcome.passed is False
    assert outcome.figures["chance"] == 0.25


def test_clean_accuracy_counts_all_classified_examples():
    # Two thirds of 300 examples are classified correctly.
    labels = np.concatenate([LABELS, 1 - LABELS[:100]])
    images = np.concatenate([PIXELS, PIXELS[:100]])
    options = {"attack": kr.attacks.PGD(0.1), "verbose": 0}
    every = kr.evaluation.check(threshold, images, labels, num_examples=300, **options)
    assert every[-1].figures["num_examples"] == 300
    assert every[-1].figures["accuracy"] == pytest.approx(2 / 3)
    order = np.random.default_rng(0).permutation(300)
    right = np.concatenate([np.ones(200, bool), np.zeros(100, bool)])[order[:128]]
    first = kr.evaluation.check(threshold, images, labels, num_examples=60, **options)
    assert first[-1].figures["num_examples"] == 128
    assert first[-1].figures["accuracy"] == right.mean()


def test_attacks_are_compared_example_by_example():
    robust, others = np.ones((2, 100), bool)
    others[:7], robust[7:8] = False, False
    outcome = compared("a", robust, "b", others)
    assert outcome.figures["fooled_by_the_other_alone"] == 7
    assert outcome.figures["fooled_by_it_alone"] == 1
    assert outcome.figures["p_value"] == 9 / 256
    assert outcome.passed
    robust[7:8] = True
    assert compared("a", robust, "b", others).figures["p_value"] == 1 / 128
    assert compared("a", robust, "b", others).passed is False
    # The accuracies are equal, although the attacks differ on every example: neither is weaker.
    assert compared("a", np.arange(100) < 50, "b", np.arange(100) >= 50).passed


class Jump(kr.attacks.Attack):
    """Moves the pixel over the threshold at any distance, and records its calls."""

    calls: ClassVar = []

    def run_checked(self, classifier, x, *args, **kwargs):
        self.calls.append(len(x))
        return super().run_checked(classifier, x, *args, **kwargs)

    def generate(self, problem, x, start, index, seed):
        return 0.5 + 1e-4 * ops.sign(0.5 - x)


def test_attacks_without_a_radius_need_epsilon_and_norm():
    results = kr.evaluation.check(
        threshold, PIXELS, LABELS, attack=Jump(), epsilon=0.1, norm="linf", num_examples=100,
        verbose=0,
    )  # fmt: skip
    chosen = np.random.default_rng(0).permutation(200)[:100]
    fooled = float((DISTANCES[chosen] < 0.0999).sum())
    assert results[0].figures == {"num_examples": 100, "num_fooled": fooled}
    assert not [result for result in results if result.passed is False]


def test_an_error_in_one_check_does_not_stop_the_others():
    def other(x):
        if x.shape[0] > 8:
            raise ValueError("Too many images.")
        return threshold(x)

    results = kr.evaluation.check(
        threshold, PIXELS, LABELS, attack=kr.attacks.PGD(0.1), transfer_from=other, verbose=0
    )
    by_name = {result.name: result for result in results}
    assert by_name[TRANSFER].passed is None
    assert "could not be run. ValueError" in by_name[TRANSFER].sentence
    assert sum(result.passed is True for result in results) == 14


def test_models_without_correct_examples_cannot_be_checked():
    results = kr.evaluation.check(
        threshold, PIXELS, 1 - LABELS, attack=kr.attacks.PGD(0.1), verbose=0
    )
    *others, above_chance = results
    assert {result.passed for result in others} == {None}
    assert "none of the examples" in results[0].sentence
    assert above_chance.passed is False
    assert above_chance.figures["accuracy"] == 0


def test_results_depend_on_the_seed_and_the_cost_is_as_documented(monkeypatch, capsys):
    spent = np.zeros(100, int)
    run = kr.attacks.Attack.run_checked

    def counting(attack, classifier, x, *args, **kwargs):
        result = run(attack, classifier, x, *args, **kwargs)
        spent[: len(x)] += result.num_gradients
        return result

    monkeypatch.setattr(kr.attacks.Attack, "run_checked", counting)
    results = [
        kr.evaluation.check(
            threshold, PIXELS, LABELS, attack=kr.attacks.MIM(0.1, num_steps=3), num_examples=100,
            seed=seed, verbose=1,
        )
        for seed in (0, 0, 1)
    ]  # fmt: skip
    # FGSM, PGD-1, PGD-5, PGD-20, PGD-20 at half the range, and MIM. The documented 49 gradients
    # include 2 outside of attacks.
    assert (spent == 3 * (1 + 1 + 5 + 20 + 20 + 3)).all()
    assert "49 gradients" in kr.evaluation.check.__doc__
    assert "16/16" in capsys.readouterr().out
    assert results[0] == results[1]
    assert results[0] != results[2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"attack": "PGD"}, "untargeted"),
        ({"attack": kr.attacks.PGD(0.1, targeted=True)}, "untargeted"),
        ({"attack": Jump()}, "`epsilon` must be given"),
        ({"attack": Jump(), "epsilon": 0.1}, "`norm`.*Received: norm=None"),
        ({"attack": Jump(), "epsilon": 0.1, "norm": "l3"}, "`norm`"),
        ({"attack": Jump(), "epsilon": float("nan"), "norm": "l2"}, "`epsilon`"),
        ({"epsilon": 0.1}, "`epsilon` and `norm` must be None"),
        ({"norm": "l2"}, "`epsilon` and `norm` must be None"),
        ({"attack": kr.attacks.PGD(0.0)}, "`epsilon`.*greater than 0"),
        ({"num_examples": 0}, "`num_examples`"),
        ({"batch_size": 0}, "`batch_size`"),
        ({"chance": 0.0}, "`chance`"),
        ({"chance": 1.5}, "`chance`"),
        ({"chance": float("nan")}, "`chance`"),
        ({"y": LABELS[:3]}, "same number of examples"),
        ({"x": PIXELS * 2}, "inside the attack's `bounds`"),
        ({"transfer_from": lambda x: ops.softmax(threshold(x))}, "ends in a softmax"),
    ],
    ids=name_of,
)
def test_bad_arguments(arguments, message):
    arguments = {"x": PIXELS, "y": LABELS, "attack": PGD, "verbose": 0, **arguments}
    with pytest.raises(ValueError, match=message):
        kr.evaluation.check(threshold, **arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"transfer_from": "other.keras"}, "`transfer_from` must be another model.*'other.keras'"),
        ({"transfer_from": lambda x: ops.softmax(threshold(x))}, "ends in a softmax"),
        ({"transfer_from": lambda x: threshold(x)[:, None]}, "at least two class scores"),
        ({"transfer_from": lambda x: ops.reshape(x, (-1, 7))}, "`transfer_from` must be another"),
        ({"transfer_from": threshold, "checks": False}, "`transfer_from` is used by the checks"),
    ],
    ids=name_of,
)
def test_evaluate_rejects_bad_models_for_transfer(arguments, message):
    Jump.calls.clear()
    with pytest.raises(ValueError, match=message):
        kr.evaluate(threshold, PIXELS, LABELS, {"a": Jump()}, verbose=0, **arguments)
    assert not Jump.calls


def test_evaluate_checks_its_strongest_attack(tmp_path):
    Jump.calls.clear()
    attacks = {
        "weak": kr.attacks.PGD(0.05, num_steps=2),
        "strong": kr.attacks.PGD(0.1, num_steps=2),
        "without limit": Jump(),
    }
    report = kr.evaluate(threshold, PIXELS, LABELS, attacks, output=tmp_path, verbose=0)
    assert [result.name for result in report.checks] == list(CHECKS)
    fooled = int((DISTANCES < 0.1).sum())
    assert report.checks[0].figures == {"num_examples": 200, "num_fooled": fooled}
    assert report.checks[0].sentence.startswith("strong fools the model")
    assert not report.failed_checks
    assert len(json.loads((tmp_path / "report.json").read_text())["checks"]) == 16
    assert sum(Jump.calls) == 256

    report = kr.evaluate(threshold, PIXELS, LABELS, attacks, checks=False, verbose=0)
    assert report.checks is None
    report = kr.evaluate(threshold, PIXELS, LABELS, {"without limit": Jump()}, verbose=0)
    assert [result.passed for result in report.checks] == [None, True]
    assert report.checks[1].name == ABOVE_CHANCE
    assert "`kr.evaluation.check`" in report.checks[0].sentence


def test_evaluate_flags_a_masked_model():
    report = kr.evaluate(without_gradient, PIXELS, LABELS, {"PGD": kr.attacks.PGD(0.1)}, verbose=0)
    assert {SQUARE, NOISE, CHANCE, UNBOUNDED, NOT_ZERO} <= {
        result.name for result in report.failed_checks
    }


@pytest.mark.parametrize(("model", "passed"), [(threshold, True), (without_gradient, False)])
def test_evaluate_attacks_with_another_model(model, passed):
    report = kr.evaluate(
        model, PIXELS, LABELS, {"PGD": PGD}, transfer_from=lambda x: threshold(x, slope=3.0),
        verbose=0,
    )  # fmt: skip
    result = {result.name: result for result in report.checks}[TRANSFER]
    chosen = np.random.default_rng(0).permutation(200)[:100]
    assert result.passed is passed
    assert result.figures["compared_accuracy"] == (DISTANCES[chosen] > 0.1).mean()
