"""A classifier with one output `z` is treated like one with the two logits `(0, z)`.

The tests compare it with a separate model that has both outputs.
"""

import inspect

import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_robust as kr
from keras_robust.cli import main

RNG = np.random.default_rng(0)
X = RNG.random((24, 6, 6, 1), "float32")
HIDDEN = RNG.normal(size=(36, 5)).astype("float32") / 3
KERNEL = RNG.normal(size=(5, 1)).astype("float32")
Z = (np.tanh(X.reshape(24, 36).astype("float64") @ HIDDEN) @ KERNEL)[:, 0]
BIAS = np.array([-np.median(Z)], "float32")
Z = Z + BIAS.astype("float64")
Y = (Z > 0).astype("int64")
# `from_logits` by the last activation.
ENDS = {"logit": True, "sigmoid": False}


def one_output(from_logits=True, scale=1.0):
    """Returns a network with one output."""
    end = layers.Dense(1, None if from_logits else "sigmoid", name="end")
    model = keras.Sequential([keras.Input((6, 6, 1)), *hidden_layers(), end])
    model.set_weights([HIDDEN, scale * KERNEL, scale * BIAS])
    return model


def two_outputs(from_logits=True):
    """Returns the network with two outputs, whose last kernel has the columns `(0, w)`."""
    end = layers.Dense(2, None if from_logits else "softmax", name="end")
    model = keras.Sequential([keras.Input((6, 6, 1)), *hidden_layers(), end])
    kernel = np.concatenate([np.zeros_like(KERNEL), KERNEL], axis=1)
    model.set_weights([HIDDEN, kernel, np.array([0, BIAS[0]])])
    return model


def hidden_layers():
    flatten = layers.Flatten(name="flatten")
    return [flatten, layers.Dense(5, "tanh", use_bias=False, name="hidden")]


def with_zero_logit(model, from_logits=True):
    """Returns a model with the logits `(0, z)` or their softmax, from a model with one output."""
    inputs = outputs = keras.Input((6, 6, 1))
    for layer in model.layers:
        outputs = layer(outputs)
    outputs = ops.concatenate([ops.zeros_like(outputs), outputs], axis=1)
    return keras.Model(inputs, outputs if from_logits else layers.Softmax()(outputs))


ATTACKS = {
    "FGSM": lambda **a: kr.attacks.FGSM(0.1, **a),
    "IFGSM": lambda **a: kr.attacks.IFGSM(0.1, num_steps=3, **a),
    "PGD": lambda **a: kr.attacks.PGD(0.1, num_steps=3, num_restarts=2, **a),
    "MIM": lambda **a: kr.attacks.MIM(0.1, num_steps=3, **a),
    "MultiTargeted": lambda **a: kr.attacks.MultiTargeted(0.1, num_steps=3, **a),
    "APGD": lambda **a: kr.attacks.APGD(0.1, num_steps=6, **a),
    "FAB": lambda **a: kr.attacks.FAB(0.1, num_steps=4, **a),
    "Square": lambda **a: kr.attacks.Square(0.1, num_queries=10, **a),
    "HopSkipJump": lambda **a: kr.attacks.HopSkipJump(num_queries=200, **a),
    "DeepFool": lambda **a: kr.attacks.DeepFool(num_steps=5, **a),
    "CarliniWagnerL2": lambda **a: kr.attacks.CarliniWagnerL2(
        num_steps=10, binary_search_steps=2, **a
    ),
    "GaussianNoise": lambda **a: kr.attacks.GaussianNoise(0.2, **a),
    "Ensemble": lambda **a: kr.attacks.Ensemble(
        [kr.attacks.FGSM(0.05, **a), kr.attacks.PGD(0.1, num_steps=2, **a)]
    ),
    "AutoAttack": lambda **a: kr.attacks.AutoAttack(0.1, **a),
    "BPDA": lambda **a: kr.attacks.PGD(
        0.1, num_steps=3, objective=kr.attacks.BPDA("flatten", flat, **a), **a
    ),
}
QUICK, QUICK_ON_JAX = ("FGSM", "PGD", "Square", "GaussianNoise"), ("FGSM",)
NOT_TESTED = {"Attack", "AttackResult", "RoundResult", "WNLLSurrogate"}


def unless(quick, quick_on_jax=True):
    """Returns the marks of a test that is slow unless `quick`."""
    return [pytest.mark.slow] * (not quick) + [pytest.mark.slow_on_jax] * (not quick_on_jax)


def flat(x):
    return ops.reshape(x, (-1, 36))


def test_no_attack_is_missing():
    public = {name for name, value in vars(kr.attacks).items() if inspect.isclass(value)}
    assert public == set(ATTACKS) | NOT_TESTED


@pytest.mark.parametrize("from_logits", ENDS.values(), ids=ENDS)
@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=unless(name in QUICK, name in QUICK_ON_JAX)) for name in ATTACKS],
)
def test_attacks_find_the_same_as_with_two_outputs(name, from_logits):
    attack = ATTACKS[name](from_logits=from_logits)
    found = attack.run(one_output(from_logits), X, Y, seed=0)
    expected = attack.run(two_outputs(from_logits), X, Y, seed=0)
    assert expected.success.any()
    np.testing.assert_array_equal(found.success, expected.success)
    # A hundred steps enlarge rounding errors.
    atol = 5e-3 if name == "AutoAttack" else 2e-5
    np.testing.assert_allclose(found.x_adv, expected.x_adv, atol=atol)
    # `predict` misclassifies the fooled images.
    outputs = one_output(from_logits).predict(found.x_adv, verbose=0)[:, 0]
    classes = outputs > (0 if from_logits else 0.5)
    assert (classes != Y)[found.success].all()


@pytest.mark.slow_on_jax
@pytest.mark.parametrize("from_logits", ENDS.values(), ids=ENDS)
def test_targeted_attacks_find_the_same_as_with_two_outputs(from_logits):
    attack = kr.attacks.PGD(0.1, num_steps=3, targeted=True, from_logits=from_logits)
    found = attack.run(one_output(from_logits), X, 1 - Y, seed=0)
    expected = attack.run(two_outputs(from_logits), X, 1 - Y, seed=0)
    assert expected.success.any()
    np.testing.assert_allclose(found.x_adv, expected.x_adv, atol=2e-5)


@pytest.mark.slow_on_jax
@pytest.mark.parametrize("name", ["PGD", "Square"])
def test_saturated_sigmoids_are_attacked(name):
    scale = 1000 / abs(Z).max()
    model = one_output(from_logits=False, scale=scale)
    p = model.predict(X, verbose=0)[:, 0]
    assert np.isin(p, (0, 1)).mean() > 0.5
    attack = {
        "PGD": kr.attacks.PGD(0.1, num_steps=3, loss="margin", from_logits=False),
        "Square": kr.attacks.Square(0.1, num_queries=10, from_logits=False),
    }[name]
    found = attack.run(model, X, Y, seed=0)
    expected = attack.run(two_outputs(from_logits=False), X, Y, seed=0)
    assert found.success.sum() > 3
    np.testing.assert_array_equal(found.success, expected.success)


LABELS = {
    "int": Y,
    "uint8": Y.astype("uint8"),
    "bool": Y.astype(bool),
    "float32": Y.astype("float32"),
    "column": Y[:, None],
    "column of floats": Y[:, None].astype("float64"),
}


@pytest.mark.slow_on_jax
def test_all_forms_of_labels():
    attack, model = kr.attacks.FGSM(0.1), one_output()
    expected = attack.run(two_outputs(), X, Y)
    for y in LABELS.values():
        np.testing.assert_allclose(attack.run(model, X, y).x_adv, expected.x_adv, atol=1e-6)
        accuracy = kr.evaluation.robust_accuracy(model, X, y, attack=attack)
        assert accuracy == 1 - expected.success_rate


def pgd(from_logits):
    return kr.attacks.PGD(1.0, norm="l2", num_steps=2, from_logits=from_logits)


LOSSES = {
    "AdversarialTraining": lambda f: kr.losses.AdversarialTraining(pgd(f)),
    "TRADES": lambda f: kr.losses.TRADES(pgd(f), start_stddev=0.05),
    "MART": lambda f: kr.losses.MART(pgd(f)),
    "LatentDisparity": lambda f: kr.losses.LatentDisparity(pgd(f)),
    "StabilityTraining": lambda f: kr.losses.StabilityTraining(2.0, stddev=0.3, from_logits=f),
    "DeepDefense": lambda f: kr.losses.DeepDefense(2.0, num_steps=2, from_logits=f),
    "FisherInformation": lambda f: kr.losses.FisherInformation(0.1),
    "Sum": lambda f: (
        kr.losses.AdversarialTraining(pgd(f))
        + 0.5 * kr.losses.StabilityTraining(2.0, stddev=0.3, from_logits=f)
    ),
}
NOT_TESTED_LOSSES = {
    "GuidedDenoising": "trains another model, below",
    "GraphInterpolation": "needs a WNLLHead",
    "MaxMahalanobis": "needs a MaxMahalanobisClassifier",
    "ModelLoss": "the base class",
}


def trained(base, loss, y, **arguments):
    robust = kr.RobustModel(base, seed=3)
    robust.compile(keras.optimizers.SGD(0.5), loss, **arguments)
    history = robust.fit(X, y, batch_size=24, shuffle=False, verbose=0).history
    return robust, history


def test_no_loss_is_missing():
    public = {name for name, value in vars(kr.losses).items() if inspect.isclass(value)}
    assert public == set(LOSSES) | set(NOT_TESTED_LOSSES)


@pytest.mark.parametrize(
    ("name", "from_logits"),
    [
        pytest.param(
            name,
            from_logits,
            marks=unless(name in ("TRADES", "FisherInformation"), name == "FisherInformation"),
        )
        for name in LOSSES
        for from_logits in ENDS.values()
        if from_logits or name != "FisherInformation"  # It only takes logits.
    ],
)
def test_a_training_step_equals_that_with_two_outputs(name, from_logits):
    make = LOSSES[name]
    # The metric uses the predictions of the training step.
    metric = keras.metrics.BinaryAccuracy("accuracy", threshold=0.0 if from_logits else 0.5)
    y = Y[:, None].astype("float32")
    robust, history = trained(one_output(from_logits), make(from_logits), y, metrics=[metric])
    two, expected = trained(
        with_zero_logit(one_output(), from_logits), make(from_logits), Y, metrics=["accuracy"]
    )
    np.testing.assert_allclose(history["loss"], expected["loss"], rtol=1e-5)
    np.testing.assert_allclose(history["accuracy"], expected["accuracy"], rtol=1e-6)
    before = one_output().get_weights()
    for old, ours, theirs in zip(before, robust.get_weights(), two.get_weights(), strict=True):
        assert abs(ours - old).max() > 1e-3
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_training_of_a_denoiser_equals_that_with_two_outputs():
    def denoiser():
        layer = kr.layers.GuidedDenoiser((2, 3), name="denoiser")
        layer.build((None, 6, 6, 1))
        rng = np.random.default_rng(2)
        layer.set_weights([rng.uniform(-0.4, 0.6, w.shape) for w in layer.get_weights()])
        return layer

    weights, losses = [], []
    for classifier in (one_output(), two_outputs()):
        classifier.trainable = False
        base = keras.Sequential([keras.Input((6, 6, 1)), denoiser(), classifier])
        loss = kr.losses.GuidedDenoising(kr.attacks.FGSM(0.1), layer="hidden")
        robust, history = trained(base, loss, Y)
        weights.append(base.layers[0].get_weights())
        losses.append([*history["loss"], robust.evaluate(X, Y, verbose=0)])
    np.testing.assert_allclose(*losses, rtol=1e-5)
    for ours, theirs in zip(*weights, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("y", LABELS.values(), ids=LABELS)
def test_the_clean_loss_is_binary_cross_entropy(y):
    # The loss is `log(1 + exp(z)) - y z`.
    expected = (np.logaddexp(0, Z) - Y * Z).mean()
    for from_logits in ENDS.values():
        robust = kr.RobustModel(one_output(from_logits))
        loss = kr.losses.AdversarialTraining(pgd(from_logits))
        robust.compile("sgd", loss, metrics=["accuracy"])
        value, accuracy = robust.evaluate(X, y, verbose=0)
        assert value == pytest.approx(expected, rel=1e-5)
        # Keras compares the output with 0.5, even if it is a logit.
        threshold = 0.5 if from_logits else 0.0
        assert accuracy == pytest.approx(((threshold < Z) == Y).mean())
        assert robust.predict(X, verbose=0).shape == (24, 1)


@pytest.mark.slow_on_jax
@pytest.mark.parametrize(
    "loss",
    [
        "binary_crossentropy",
        keras.losses.BinaryCrossentropy(from_logits=True),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        kr.losses.FisherInformation(0.0),
    ],
    ids=["name", "binary", "of classes", "ours"],
)
def test_classification_losses_may_be_given(loss):
    expected = trained(one_output(), kr.losses.AdversarialTraining(pgd(True)), Y)[1]["loss"]
    given = kr.losses.AdversarialTraining(pgd(True), loss=loss)
    np.testing.assert_allclose(trained(one_output(), given, Y)[1]["loss"], expected, rtol=1e-5)


def test_plain_losses_in_a_sum():
    binary = keras.losses.BinaryCrossentropy(from_logits=True)
    classes = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    expected = 1.5 * (np.logaddexp(0, Z) - Y * Z).mean()
    for first, second in ((binary, classes), (classes, binary)):
        loss = kr.losses.Sum([first, second], [1.0, 0.5])
        value = trained(one_output(), loss, Y[:, None])[1]["loss"]
        np.testing.assert_allclose(value, [expected], rtol=1e-5)


def test_heads_with_one_class_are_an_error():
    for head in (kr.layers.TanhClassifier, kr.layers.MaxMahalanobisClassifier, kr.layers.WNLLHead):
        with pytest.raises(ValueError, match=r"`num_classes`.*at least 2"):
            head(1)
    robust = kr.RobustModel(one_output())
    robust.compile("sgd", kr.losses.MaxMahalanobis())
    with pytest.raises(ValueError, match="for at least two classes"):
        robust.fit(X, Y, verbose=0)
    with pytest.raises(ValueError, match="at least 2 classes"):
        kr.regularizers.AngularPenalty()(ops.ones((5, 1)))


@pytest.mark.slow
@pytest.mark.parametrize("from_logits", ENDS.values(), ids=ENDS)
def test_a_report_and_its_checks_equal_those_with_two_outputs(from_logits):
    attacks = [kr.attacks.PGD(0.05, num_steps=4, from_logits=from_logits)]
    attacks.append(kr.attacks.FGSM(0.05, from_logits=from_logits))
    y = Y.copy()
    y[:3] = 1 - y[:3]
    reports = [
        kr.evaluate(model, X, labels, attacks, batch_size=8, verbose=0)
        for model, labels in (
            (one_output(from_logits), y[:, None].astype("float32")),
            (two_outputs(from_logits), y),
        )
    ]
    rows, expected = (report.to_dict()["rows"] for report in reports)
    assert rows == expected
    assert 0.2 < reports[0].accuracy("worst case") < reports[0].accuracy("clean") == 21 / 24
    checks, theirs = (report.checks for report in reports)
    assert len(checks) == len(theirs) > 10
    for ours, other in zip(checks, theirs, strict=True):
        assert (ours.name, ours.passed) == (other.name, other.passed)
        for name, value in other.figures.items():
            assert ours.figures[name] == pytest.approx(value, rel=1e-3, abs=1e-4), ours.name


@pytest.mark.slow
def test_a_final_sigmoid_is_not_a_saturated_layer():
    model = one_output(from_logits=False, scale=300.0)
    attack = kr.attacks.FGSM(0.1, from_logits=False)
    checks = kr.evaluation.check(model, X, Y, attack=attack, verbose=0)
    found = {check.name: check for check in checks}
    hidden = next(check for name, check in found.items() if "share_flat_hidden" in check.figures)
    assert hidden.passed
    certain = next(check for check in checks if "share_certain" in check.figures)
    assert certain.passed is False


@pytest.mark.slow_on_jax
def test_metrics_equal_those_with_two_outputs():
    attack, model, two = kr.attacks.FGSM(0.05), one_output(), two_outputs()
    y = Y[:, None].astype("float32")

    def figures(model, y):
        curve = kr.evaluation.robustness_curve(
            model, X, y, attack=attack, epsilons=[0.02, 0.1], verbose=0
        )
        noisy = kr.evaluation.noise_accuracy(model, X, y, stddevs=[0.3], verbose=0)[0.3]
        strong = kr.attacks.FGSM(0.5)
        rho = kr.evaluation.rho(model, X, y, attack=strong)
        unlabeled = kr.evaluation.rho(model, X, attack=strong)
        nearest = kr.evaluation.nearest_images(model, X[:3], X, y, k=2)
        return [*curve.values(), *noisy.accuracies, rho, unlabeled, *nearest.labels.ravel()]

    np.testing.assert_allclose(figures(model, y), figures(two, Y), rtol=1e-4)
    matrix = kr.evaluation.transfer_matrix(
        {"one": model, "two": two}, X, Y, attack=attack, verbose=0
    )
    assert matrix.accuracy["one"] == matrix.accuracy["two"]
    folds = [
        kr.evaluation.k_fold(lambda x, y, m=m: m, X, labels, num_folds=3, verbose=0).folds
        for m, labels in ((model, y), (two, Y))
    ]
    assert folds[0] == folds[1] == [{"accuracy": 1.0}] * 3


@pytest.mark.parametrize("from_logits", ENDS.values(), ids=ENDS)
def test_certificates_equal_those_with_two_outputs(from_logits):
    pytest.importorskip("scipy", reason="certificates need SciPy")
    found, expected = (
        kr.evaluation.certify(
            model,
            X[:6],
            Y[:6],
            stddev=0.1,
            num_samples=200,
            num_selection=20,
            batch_size=100,
            verbose=0,
        )
        for model in (one_output(from_logits), two_outputs(from_logits))
    )
    assert found.radii.max() > 0
    np.testing.assert_array_equal(found.radii, expected.radii)
    np.testing.assert_array_equal(found.classes, expected.classes)


@pytest.mark.slow_on_jax
@pytest.mark.parametrize("from_logits", ENDS.values(), ids=ENDS)
def test_the_smoothed_classifier_equals_that_with_two_outputs(from_logits):
    def votes(model):
        smoothed = kr.evaluation.SmoothedClassifier(model, stddev=0.1, num_votes=50, seed=1)
        return ops.convert_to_numpy(smoothed(X))

    found = votes(one_output(from_logits))
    assert found.shape == (len(X), 2)
    assert 0 < found[:, 1].mean() + 1 < 2
    np.testing.assert_array_equal(found, votes(two_outputs(from_logits)))


def test_an_ambiguous_smoothed_output_is_an_error():
    model = keras.Sequential([keras.Input((6, 6, 1)), layers.Flatten(), layers.Dense(4)])
    one = keras.Model(model.inputs, ops.mean(model.outputs[0], axis=1, keepdims=True))
    with pytest.raises(ValueError, match="a logit or a probability"):
        kr.evaluation.SmoothedClassifier(one, stddev=0.1)(X)


@pytest.mark.slow
def test_the_model_for_transfer_may_have_one_output():
    attack = kr.attacks.FGSM(0.1)
    floats = Y.astype("float32")
    one, two = one_output(), two_outputs()
    for model, other, y in ((one, two, floats), (two, one, Y)):
        checks = kr.evaluation.check(
            model, X, y, attack=attack, transfer_from=other, num_examples=8, verbose=0
        )
        transfer = [check for check in checks if "other model" in check.sentence]
        assert [check.passed for check in transfer] == [True]


@pytest.mark.slow_on_jax
@pytest.mark.parametrize("from_logits", ENDS.values(), ids=ENDS)
def test_the_command_takes_a_model_with_one_output(from_logits, monkeypatch, tmp_path, capsys):
    data = kr.datasets.ArrayDataset(X, Y[:, None].astype("float32"))
    monkeypatch.setattr("keras_robust.cli.data.load", lambda *args: data)
    path = str(tmp_path / "one.keras")
    one_output(from_logits).save(path)
    argv = ["evaluate", path, "--dataset", "of two classes", "--attack", "fgsm"]
    assert main([*argv, "--epsilon", "0.1", "--no-checks"]) == 0
    printed = capsys.readouterr().out
    assert f"look like {'logits' if from_logits else 'probabilities'}" in printed
    attack = kr.attacks.FGSM(0.1, from_logits=from_logits)
    report = kr.evaluate(two_outputs(from_logits), X, Y, attack, checks=False, verbose=0)
    assert report.statement in printed
    wrong = "--from-probabilities" if from_logits else "--from-logits"
    assert main([*argv, "--epsilon", "0.1", wrong]) == 2


def score(x):
    """Computes the logit, like `decision_function` of scikit-learn."""
    assert isinstance(x, np.ndarray)
    return np.tanh(x.reshape(len(x), 36) @ HIDDEN) @ KERNEL[:, 0] + BIAS[0]


def probability(x):
    return 1 / (1 + np.exp(-score(x)))


FUNCTIONS = {
    "logits, (n,)": (score, True),
    "logits, (n, 1)": (lambda x: score(x)[:, None], True),
    "probabilities, (n,)": (probability, False),
    "probabilities, (n, 1)": (lambda x: probability(x)[:, None], False),
}


@pytest.mark.slow_on_jax
@pytest.mark.parametrize(("function", "from_logits"), FUNCTIONS.values(), ids=FUNCTIONS)
def test_functions_of_arrays_with_one_output(function, from_logits):
    attack = kr.attacks.Square(0.1, num_queries=10, from_logits=from_logits)
    found = attack.run(kr.BlackBox(function), X, Y, seed=0)
    expected = attack.run(two_outputs(from_logits), X, Y, seed=0)
    assert expected.success.any()
    np.testing.assert_array_equal(found.success, expected.success)
    noisy = kr.evaluation.noise_accuracy(kr.BlackBox(function), X, Y, stddevs=[0.3], verbose=0)
    expected = kr.evaluation.noise_accuracy(
        two_outputs(from_logits), X, Y, stddevs=[0.3], verbose=0
    )
    np.testing.assert_array_equal(noisy[0.3].accuracies, expected[0.3].accuracies)
    with pytest.raises(ValueError, match=f"`from_logits={not from_logits}` was given"):
        attack.replace(from_logits=not from_logits).run(kr.BlackBox(function), X, Y, seed=0)


@pytest.mark.slow_on_jax
def test_functions_of_tensors_with_one_output():
    model = one_output()
    for function, from_logits in ((model, True), (lambda x: ops.sigmoid(model(x))[:, 0], False)):
        attack = kr.attacks.PGD(0.1, num_steps=3, from_logits=from_logits)
        found = attack.run(function, X, Y, seed=0)
        expected = attack.run(two_outputs(from_logits), X, Y, seed=0)
        np.testing.assert_array_equal(found.success, expected.success)
        np.testing.assert_allclose(found.x_adv, expected.x_adv, atol=1e-4)


@pytest.mark.slow_on_jax
def test_objectives_with_one_output():
    surrogate = one_output()

    def objective(model, x, y):
        return surrogate(x)

    attack = kr.attacks.PGD(0.1, num_steps=3, objective=objective)
    found = attack.run(kr.BlackBox(score), X, Y, seed=0)
    expected = kr.attacks.PGD(0.1, num_steps=3).run(one_output(), X, Y, seed=0)
    np.testing.assert_array_equal(found.success, expected.success)


def test_ambiguous_outputs_are_an_error():
    # A logit in [0, 1] for the first images looks like a probability.
    def between(x):
        return 0.5 + score(x) / 100

    attack = kr.attacks.Square(0.1, num_queries=3)
    with pytest.raises(ValueError, match=r"from 0 to 1 for the first images.*return two: `\(0, z"):
        attack.run(kr.BlackBox(between), X, Y)

    def then_not(x):
        return probability(x) + 5.0 * (len(x) > 8)

    with pytest.raises(ValueError, match="was from 0 to 1 for the first images, as a prob"):
        kr.evaluation.noise_accuracy(kr.BlackBox(then_not), X, Y, stddevs=[0.1], verbose=0)


class Subclassed(keras.Model):
    """A model whose last layer is only known after a call."""

    def __init__(self, activation):
        super().__init__()
        self.flatten, self.end = layers.Flatten(), layers.Dense(1, activation)

    def call(self, x):
        return self.end(self.flatten(x))


@pytest.mark.slow_on_jax
@pytest.mark.parametrize("from_logits", ENDS.values(), ids=ENDS)
def test_a_subclassed_model_whose_logits_look_like_probabilities(from_logits):
    model = Subclassed(None if from_logits else "sigmoid")
    model(X[:1])
    model.set_weights([np.full((36, 1), 0.01, "float32"), np.full(1, 0.1, "float32")])
    z = X.reshape(24, 36).sum(axis=1) / 100 + 0.1
    assert 0.1 < z.min() < z.max() < 1
    y = np.ones(24)
    attack = kr.attacks.PGD(0.5, num_steps=2, from_logits=from_logits)
    assert kr.evaluation.noise_accuracy(model, X, y, stddevs=[0.0], verbose=0)[0.0].mean == 1
    result = attack.run(model, X, y, seed=0)
    assert not result.success.any()  # Even for black images, z would be 0.1.
    with pytest.raises(ValueError, match=f"`from_logits={not from_logits}` was given"):
        attack.replace(from_logits=not from_logits).run(model, X, y)


@pytest.mark.filterwarnings("ignore:.*softmax over axis")
def test_a_softmax_over_one_output_is_an_error():
    model = keras.Sequential([keras.Input((6, 6, 1)), *hidden_layers(), layers.Dense(1, "softmax")])
    with pytest.raises(ValueError, match="softmax over one output, which is always 1"):
        kr.attacks.FGSM(0.1, from_logits=False).run(model, X, Y)


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (2 * Y - 1, r"must be 0 and 1.*not -1 and 1: pass `\(y \+ 1\) // 2`"),
        ((2.0 * Y - 1)[:, None], r"not -1 and 1: pass `\(y \+ 1\) // 2`"),
        (Y + 1, "must be 0 and 1, to match the model's one output"),
        (Y + 0.5, "`y` must hold integer labels"),
        (np.where(Y > 0, np.nan, 0.0), "`y` must hold integer labels"),
        (np.eye(2)[Y], "must be 0 and 1, to match the model's one output, one number for each"),
        (Y[:-1], "same number of examples"),
    ],
)
def test_bad_labels(y, message):
    with pytest.raises(ValueError, match=message):
        kr.attacks.FGSM(0.1)(one_output(), X, y)
    robust = kr.RobustModel(one_output())
    robust.compile("sgd", kr.losses.AdversarialTraining(pgd(True)))
    with pytest.raises(ValueError, match=message):
        robust.train_on_batch(X, y)
