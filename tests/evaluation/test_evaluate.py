"""`kr.evaluate` and the robustness report."""

import collections
import functools
import json
from typing import ClassVar

import keras
import numpy as np
import pytest
from keras import ops

import keras_robust as kr
from keras_robust.report.row import wilson_interval

# The validity checks are slow, and have separate tests.
evaluate = functools.partial(kr.evaluate, checks=False)

X = np.linspace(0, 1, 40, dtype="float32").reshape(40, 1, 1, 1)
Y = (X[:, 0, 0, 0] > 0.5).astype("int32")


def threshold(x):
    """Predicts class 1 if the only pixel is greater than 0.5. Robust accuracy is known exactly."""
    z = 10 * (x[:, 0, 0, 0] - 0.5)
    return ops.stack([-z, z], axis=1)


class Counting(kr.attacks.FGSM):
    """FGSM that records the images that it attacks, by epsilon."""

    calls: ClassVar = collections.defaultdict(list)

    def run_checked(self, classifier, x, *args, **kwargs):
        self.calls[self.epsilon].append(np.array(x))
        return super().run_checked(classifier, x, *args, **kwargs)


@pytest.fixture
def calls():
    Counting.calls.clear()
    return Counting.calls


@pytest.mark.parametrize("batch_size", [7, 40, 1000])
def test_accuracies_are_exact(batch_size):
    report = evaluate(
        threshold,
        X,
        Y,
        {"small": kr.attacks.FGSM(0.1), "large": kr.attacks.PGD(0.3, num_steps=3)},
        batch_size=batch_size,
        verbose=0,
    )
    distance = abs(X[:, 0, 0, 0] - 0.5)
    assert [row.name for row in report.rows] == ["clean", "small", "large", "worst case"]
    assert report.accuracy("clean") == 1.0
    np.testing.assert_array_equal(report.row("small").correct, distance > 0.1)
    np.testing.assert_array_equal(report.row("large").correct, distance > 0.3)
    assert report.accuracy("worst case") == (distance > 0.3).mean()
    for name, epsilon in (("small", 0.1), ("large", 0.3)):
        row = report.row(name)
        assert row.radii == {"linf": epsilon}
        np.testing.assert_array_equal(row.attacked, True)
        # For one pixel, all norms are equal.
        for norm in ("linf", "l2"):
            assert row.perturbation(norm) == pytest.approx((epsilon, epsilon), abs=1e-6)
    assert report.row("small").cost("num_gradients") == 1
    assert report.row("large").cost("num_gradients") == 3
    assert report.row("worst case").radii == {"linf": 0.3}


def test_misclassified_examples_are_not_attacked(calls):
    wrong = Y.copy()
    wrong[:10] = 1
    report = evaluate(threshold, X, wrong, {"a": Counting(0.1)}, batch_size=8, verbose=0)
    attacked = np.unique(np.concatenate(calls[0.1]))
    np.testing.assert_array_equal(attacked, X[10:].reshape(-1))
    assert {len(x) for x in calls[0.1]} == {8}
    assert not report.row("a").correct[:10].any()


def test_worst_case_only_skips_fooled_examples(calls):
    both = {}
    for worst_case_only in (False, True):
        attacks = {"a": Counting(0.3), "b": Counting(0.1)}
        calls.clear()
        report = evaluate(
            threshold, X, Y, attacks, worst_case_only=worst_case_only, batch_size=1, verbose=0
        )
        both[worst_case_only] = report.accuracy("worst case"), len(calls[0.1])
    assert both[True][0] == both[False][0]
    assert both[False][1] == 40
    assert both[True][1] == (abs(X - 0.5) > 0.3).sum()


def test_worst_case_is_per_example():
    # One attack raises the pixel and the other lowers it. Each fools half of the examples.
    class Shift(kr.attacks.Attack):
        def __init__(self, by):
            super().__init__()
            self.by = by

        def generate(self, problem, x, start, index, seed):
            return x + self.by

    report = evaluate(threshold, X, Y, {"up": Shift(1.0), "down": Shift(-1.0)}, verbose=0)
    assert report.accuracy("up") == report.accuracy("down") == 0.5
    assert report.accuracy("worst case") == 0.0


def test_all_forms_of_models_and_data_give_the_same_rows(trained_model, embedded_data):
    x, y = (values[:50] for values in embedded_data[1])
    attacks = {"FGSM": kr.attacks.FGSM(0.05)}
    test = kr.datasets.load("fashion_mnist_subset", "test").take(50)
    expected = evaluate(trained_model, x, y, attacks, verbose=0).to_dict()["rows"]
    assert 0 < expected[1]["accuracy"] < expected[0]["accuracy"] < 1
    for model, data in [
        (kr.RobustModel(trained_model), (x, y)),
        (trained_model, (test,)),
        (trained_model, (test.batch(16),)),
        (trained_model, (x, np.eye(10)[y])),
        (trained_model, (ops.convert_to_tensor(x), ops.convert_to_tensor(y))),
    ]:
        rows = evaluate(model, *data, attacks=attacks, verbose=0).to_dict()["rows"]
        assert rows == expected


def test_results_depend_on_the_seed(trained_model, embedded_data):
    x, y = (values[:64] for values in embedded_data[1])
    attacks = {"PGD": kr.attacks.PGD(0.05, num_steps=1)}
    images = [
        evaluate(trained_model, x, y, attacks, seed=seed, verbose=0).samples["PGD"].perturbed
        for seed in (0, 0, 1)
    ]
    np.testing.assert_array_equal(images[0], images[1])
    assert abs(images[0] - images[2]).max() > 0.01


def test_summary_and_files(tmp_path, capsys, trained_model, embedded_data):
    x, y = (values[:20] for values in embedded_data[1])
    attacks = {"FGSM": kr.attacks.FGSM(0.1), "PGD": kr.attacks.PGD(0.1, num_steps=2)}
    report = evaluate(trained_model, x, y, attacks, output=tmp_path / "a" / "report")
    printed = capsys.readouterr().out
    assert f"PGD on {report.row('clean').correct.sum()} of 20 examples" in printed
    table = report.summary()
    assert capsys.readouterr().out.strip() == table.strip()
    assert table.splitlines()[1].split()[:2] == ["clean", f"{report.accuracy('clean'):.1%}"]
    saved = json.loads((tmp_path / "a" / "report" / "report.json").read_text())
    assert saved == report.to_dict()
    assert saved["complete"]
    assert saved["rows"][2]["attack"] == repr(attacks["PGD"])
    for name in ("accuracy.png", "samples.png"):
        data = (tmp_path / "a" / "report" / name).read_bytes()
        assert data[:8] == b"\x89PNG\r\n\x1a\n"
        assert len(data) > 5000


def test_reports_without_images_have_no_sheet_of_samples(tmp_path):
    report = evaluate(
        lambda x: ops.stack([x[:, 0], x[:, 1]], 1),
        np.random.default_rng(0).random((10, 2), "float32"),
        np.zeros(10, "int32"),
        {"a": kr.attacks.FGSM(0.1)},
        output=tmp_path,
        verbose=0,
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "accuracy.png",
        "progress",
        "report.html",
        "report.json",
        "report.npz",
    ]
    assert report.num_examples == 10


def test_comparison_table():
    reports = {
        name: evaluate(threshold, X, Y, {"FGSM": kr.attacks.FGSM(epsilon)}, verbose=0)
        for name, epsilon in (("a", 0.1), ("second", 0.3))
    }
    lines = kr.evaluation.comparison_table(reports).splitlines()
    assert lines[0].split() == ["a", "second"]
    assert lines[2].split() == ["FGSM", "80.0%", "40.0%"]
    other = evaluate(threshold, X, Y, {"PGD": kr.attacks.PGD(0.1)}, verbose=0)
    with pytest.raises(ValueError, match="the same rows"):
        kr.evaluation.comparison_table({"a": reports["a"], "b": other})
    with pytest.raises(ValueError, match="`name` must be one of"):
        other.accuracy("FGSM")


def test_wilson_interval():
    # Newcombe (1998), Table I: 81 of 263 and 0 of 20.
    np.testing.assert_allclose(wilson_interval(81, 263), (0.2553, 0.3662), atol=5e-5)
    np.testing.assert_allclose(wilson_interval(0, 20), (0.0, 0.1611), atol=5e-5)


def test_robustness_curve():
    curve = kr.evaluation.robustness_curve(
        threshold,
        X,
        Y,
        attack=kr.attacks.PGD(0.1, step_size=0.2, num_steps=1, random_start=False),
        epsilons=[0.4, 0.0, 0.1, 0.2],
        verbose=0,
    )
    distance = abs(X[:, 0, 0, 0] - 0.5)
    assert list(curve) == [0.0, 0.1, 0.2, 0.4]
    assert list(curve.values()) == [(distance > epsilon).mean() for epsilon in curve]


def test_plot_curves_writes_a_file(tmp_path):
    kr.evaluation.plot_curves(
        {"a": {0.0: 1.0, 0.1: 0.5}, "b": {0.0: 0.9, 0.1: 0.0}},
        tmp_path / "curves.png",
        chance=0.1,
        training_epsilon=0.05,
    )
    assert (tmp_path / "curves.png").stat().st_size > 5000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"attacks": None}, "`attacks` must be a mapping"),
        ({"attacks": {}}, "`attacks` must be a mapping"),
        ({"attacks": []}, "`attacks` must be a mapping"),
        ({"attacks": "pgd"}, "`attacks` must be a mapping"),
        ({"attacks": ["pgd"]}, "untargeted.*Received: 'pgd'"),
        ({"resume": True}, "`resume` needs the folder `output`"),
        ({"attacks": {"a": "FGSM"}}, "untargeted.*Received: 'FGSM'"),
        ({"attacks": {"a": kr.attacks.PGD(0.1, targeted=True)}}, "untargeted"),
        ({"attacks": {"clean": kr.attacks.FGSM(0.1)}}, "'clean'"),
        ({"batch_size": 0}, "`batch_size`"),
        ({"y": None}, "`y` must be given"),
        ({"y": Y[:3]}, "same number of examples"),
        ({"y": Y + 1}, "from 0 to 1"),
        ({"x": X * 2}, "inside the attack's `bounds`"),
        ({"x": X * float("nan")}, "finite"),
        ({"x": X[:0], "y": Y[:0]}, "at least one example"),
        ({"x": "images"}, "."),
    ],
    ids=str,
)
def test_bad_arguments(arguments, message):
    arguments = {"x": X, "y": Y, "attacks": {"a": kr.attacks.FGSM(0.1)}, **arguments}
    with pytest.raises(ValueError, match=message):
        evaluate(threshold, **arguments, verbose=0)


def test_labels_of_a_data_set():
    test = kr.datasets.load("fashion_mnist_subset", "test").take(4)
    attacks = {"a": kr.attacks.FGSM(0.1)}
    with pytest.raises(ValueError, match="`y` must be None where `x` is a data set"):
        evaluate(threshold, test, Y, attacks)
    for empty in (test.take(0), test.map(lambda image, label: image)):
        with pytest.raises(ValueError, match="pair of images and labels"):
            evaluate(threshold, empty, attacks=attacks)


def test_nan_outputs_on_attacked_images_are_an_error():
    # Comparisons with NaN are false, so argmax would predict class 0.
    def outputs(x):
        z = threshold(x)
        return ops.where(ops.expand_dims(x[:, 0, 0, 0] > 0.95, 1), z * float("nan"), z)

    with pytest.raises(ValueError, match="NaN"):
        evaluate(outputs, X, Y, {"a": kr.attacks.FGSM(0.1)}, verbose=0)


def test_unbuilt_models(embedded_data):
    x, y = (values[:8] for values in embedded_data[1])
    model = keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(10)])
    report = evaluate(model, x, y, {"a": kr.attacks.FGSM(1.0)}, verbose=0)
    assert report.accuracy("a") <= report.accuracy("clean")


@pytest.mark.parametrize("name", ["mask", "certificate"])
def test_notes_must_not_have_reserved_names(name):
    with pytest.raises(ValueError, match=f"`notes` must not have the names.*Received.*{name}"):
        evaluate(threshold, X, Y, {"a": kr.attacks.FGSM(0.1)}, notes={name: "mine"}, verbose=0)
