"""Functions of NumPy arrays can be attacked without gradients."""

import dataclasses

import keras
import numpy as np
import pytest
from keras import ops

import keras_robust as kr
from keras_robust.metrics.perturbed import batch_seed
from keras_robust.model.classifier import Classifier

rng = np.random.default_rng(0)
KERNEL = rng.normal(size=(36, 3)).astype("float32")
X = rng.random((20, 6, 6, 1), "float32")


def scores(x):
    """Computes scores with NumPy. Rejects tensors."""
    assert isinstance(x, np.ndarray)
    return x.reshape(len(x), -1) @ KERNEL


Y = scores(X).argmax(axis=1)


def linear():
    layers = [keras.layers.Flatten(), keras.layers.Dense(3, use_bias=False)]
    model = keras.Sequential([keras.Input((6, 6, 1)), *layers])
    model.set_weights([KERNEL])
    return model


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_square_finds_the_same_as_on_the_model(norm):
    attack = kr.attacks.Square(0.2 if norm == "linf" else 2.0, norm=norm, num_queries=40)
    box = kr.BlackBox(scores)
    found, expected = attack.run(box, X, Y, seed=0), attack.run(linear(), X, Y, seed=0)
    assert 0 < found.success_rate < 1
    if norm == "linf":
        np.testing.assert_array_equal(found.success, expected.success)
        np.testing.assert_allclose(found.x_adv, expected.x_adv, atol=1e-6)
    # In L2, each proposal depends on the last one, so rounding differences grow.
    assert abs(found.success_rate - expected.success_rate) <= 0.3
    # The checks query 8 images. No images are repeated to fill up a batch.
    assert box.num_queries == found.num_evaluations.sum() + 8


@pytest.mark.slow
def test_a_report_agrees_with_that_of_the_model(tmp_path):
    attacks = [kr.attacks.Square(0.05, num_queries=30), kr.attacks.GaussianNoise(0.1)]
    reports = [
        kr.evaluate(model, X, Y, attacks, batch_size=8, verbose=0, output=output)
        for model, output in ((kr.BlackBox(scores), tmp_path), (linear(), None))
    ]
    for row, expected in zip(reports[0].rows, reports[1].rows, strict=True):
        np.testing.assert_array_equal(row.correct, expected.correct)
    box = kr.BlackBox(scores)
    again = kr.evaluate(
        box, X, Y, attacks, batch_size=8, verbose=0, output=tmp_path, resume=True, checks=False
    )
    assert again.accuracy("worst case") == reports[0].accuracy("worst case")
    assert box.num_queries == 8 + len(X)  # The attacks are not run again.


@pytest.mark.slow_on_jax
def test_metrics_agree_with_those_of_the_model():
    attack, box, model = kr.attacks.Square(0.1, num_queries=20), kr.BlackBox(scores), linear()
    options = {"attack": attack, "epsilons": [0.02, 0.1], "verbose": 0}
    assert kr.evaluation.robustness_curve(box, X, Y, **options) == (
        kr.evaluation.robustness_curve(model, X, Y, **options)
    )
    noisy = kr.evaluation.noise_accuracy(box, X, Y, stddevs=[0.3], verbose=0)[0.3]
    expected = kr.evaluation.noise_accuracy(model, X, Y, stddevs=[0.3], verbose=0)[0.3]
    np.testing.assert_array_equal(noisy.accuracies, expected.accuracies)
    matrix = kr.evaluation.transfer_matrix({"box": box}, X, Y, attack=attack, verbose=0)
    assert matrix.clean == {"box": 1.0}


@pytest.mark.parametrize(
    "attack",
    [kr.attacks.PGD(0.1), kr.attacks.AutoAttack(0.1), kr.attacks.DeepFool()],
    ids=lambda attack: type(attack).__name__,
)
def test_attacks_by_gradients_are_an_error(attack):
    box = kr.BlackBox(scores)
    with pytest.raises(ValueError, match="needs the model's gradient"):
        attack.run(box, X, Y)
    with pytest.raises(ValueError, match="needs the model's gradient"):
        kr.evaluate(box, X, Y, [kr.attacks.Square(0.1), attack], verbose=0)


@pytest.mark.slow
@pytest.mark.parametrize(
    "attack",
    [
        kr.attacks.PGD(0.1, num_steps=5),
        kr.attacks.APGD(0.1, num_steps=5),
        kr.attacks.FAB(num_steps=5),
        kr.attacks.CarliniWagnerL2(learning_rate=0.1, num_steps=40, binary_search_steps=2),
    ],
    ids=lambda attack: type(attack).__name__,
)
def test_attacks_by_gradients_may_use_a_surrogate(attack):
    surrogate = linear()
    attack = attack.replace(objective=lambda model, x, y: surrogate(x))
    found = attack.run(kr.BlackBox(scores), X, Y, seed=0)
    assert found.success.any()
    np.testing.assert_array_equal(found.success, scores(found.x_adv).argmax(axis=1) != Y)


@dataclasses.dataclass
class Scaled:
    """A dataclass with `__eq__`, which is not hashable."""

    factor: float

    def __call__(self, x):
        return self.factor * ops.matmul(ops.reshape(x, (-1, 36)), KERNEL)


def test_callable_objects_that_are_not_hashable():
    model = Scaled(2.0)
    attack = kr.attacks.FGSM(0.1)
    np.testing.assert_array_equal(attack.run(model, X, Y).x_adv, attack.run(linear(), X, Y).x_adv)
    model.factor = -1.0
    np.testing.assert_allclose(Classifier(model).predict(X), -scores(X), rtol=1e-4)


def test_the_error_for_a_function_of_arrays_suggests_black_box():
    model = linear()
    for function in (scores, lambda x: model.predict(x, verbose=0)):
        with pytest.raises(ValueError, match=r"keras_robust.BlackBox\(function\)"):
            kr.attacks.Square(0.1).run(function, X, Y)


def test_bad_functions():
    with pytest.raises(ValueError, match="`function` must be a callable"):
        kr.BlackBox("scores")
    with pytest.raises(ValueError, match="at least two class scores"):
        kr.attacks.Square(0.1).run(kr.BlackBox(lambda x: scores(x)[:, None]), X, Y)
    with pytest.raises(ValueError, match="finite"):
        kr.attacks.Square(0.1).run(kr.BlackBox(lambda x: scores(x) * np.nan), X, Y)


def classes(x):
    """Computes predicted classes only."""
    return scores(x - 0.5).argmax(axis=1)


def test_a_function_that_returns_classes():
    box, labels = kr.BlackBox(classes, num_classes=3), classes(X)
    np.testing.assert_array_equal(ops.convert_to_numpy(box(X)), np.eye(3)[labels])
    assert repr(box).endswith(", num_classes=3)")
    noise = kr.attacks.GaussianNoise(0.5)
    expected = noise.run(kr.BlackBox(lambda x: scores(x - 0.5)), X, labels, seed=0)
    assert 0 < expected.success_rate < 1
    for from_logits in (True, False):  # One-hot classes may be either.
        found = noise.replace(from_logits=from_logits).run(box, X, labels, seed=0)
        np.testing.assert_array_equal(found.x_adv, expected.x_adv)


@pytest.mark.slow
def test_a_report_of_classes():
    x, labels = X[:6], classes(X[:6])
    attack, box = kr.attacks.HopSkipJump(0.6, num_queries=170), kr.BlackBox(classes, num_classes=3)
    report = kr.evaluate(box, x, labels, {"labels": attack}, verbose=0)
    assert report.accuracy("clean") == 1
    expected = attack.run(box, x, labels, seed=batch_seed(0, 0))
    assert 0 < report.accuracy("labels") < 1
    assert report.accuracy("labels") == pytest.approx(1 - expected.success_rate)
    checks = {check.name: check for check in report.checks}
    assert checks["white-box beats black-box"].passed is None
    assert "needs class scores" in checks["white-box beats black-box"].sentence


@pytest.mark.parametrize("name", ["Square", "PGD", "AutoAttack", "an ensemble"])
def test_attacks_that_need_more_than_classes_are_an_error(name):
    attack, message = {
        "Square": (kr.attacks.Square(0.1), "Square needs class scores.*HopSkipJump"),
        "PGD": (kr.attacks.PGD(0.1), "needs the model's gradient.*HopSkipJump"),
        "AutoAttack": (kr.attacks.AutoAttack(0.1), "needs the model's gradient.*HopSkipJump"),
        "an ensemble": (
            kr.attacks.Ensemble([kr.attacks.GaussianNoise(0.1), kr.attacks.Square(0.1)]),
            "Square needs class scores",
        ),
    }[name]
    box = kr.BlackBox(classes, num_classes=3)
    with pytest.raises(ValueError, match=message):
        attack.run(box, X, Y)
    with pytest.raises(ValueError, match=message):
        kr.evaluate(box, X, Y, [attack], verbose=0)


@pytest.mark.slow
def test_a_surrogate_for_a_function_that_returns_classes():
    surrogate = linear()
    attack = kr.attacks.PGD(0.1, num_steps=5, objective=lambda model, x, y: surrogate(x))
    box, labels = kr.BlackBox(classes, num_classes=3), classes(X)
    found = attack.run(box, X, labels, seed=0)
    expected = attack.run(kr.BlackBox(lambda x: scores(x - 0.5)), X, labels, seed=0)
    assert found.success.any()
    np.testing.assert_array_equal(found.success, expected.success)


@pytest.mark.parametrize(
    ("function", "num_classes", "message"),
    [
        (classes, None, r"num_classes=10\).*shape \(8,\)"),
        (scores, 3, r"integers of shape \(8,\).*shape \(8, 3\)"),
        (lambda x: classes(x).astype(float), 3, "dtype float64"),
        (lambda x: classes(x)[:2], 3, r"shape \(2,\)"),
        (lambda x: classes(x) + 3, 3, "from 0 to 2.*classes from [345] to"),
        (lambda x: classes(x) - 3, 3, "from 0 to 2.*classes from -[123] to"),
    ],
)
def test_bad_outputs_of_a_function_that_returns_classes(function, num_classes, message):
    with pytest.raises(ValueError, match=message):
        kr.attacks.HopSkipJump(num_queries=5).run(kr.BlackBox(function, num_classes), X, Y)


@pytest.mark.parametrize("num_classes", [1, 2.0, True, "3"])
def test_bad_num_classes(num_classes):
    with pytest.raises(ValueError, match="`num_classes`"):
        kr.BlackBox(classes, num_classes)


def test_an_error_in_the_function_is_raised():
    def fails(x):
        raise ConnectionError("service unavailable")

    with pytest.raises(ConnectionError, match="service unavailable"):
        kr.attacks.Square(0.1).run(kr.BlackBox(fails), X, Y)
