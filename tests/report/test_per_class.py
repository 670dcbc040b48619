"""Accuracy per class is exact, printed, shown in the page, saved and loaded."""

import functools
import json
import re
import shutil

import numpy as np
import pytest
from keras import ops

import keras_robust as kr
from keras_robust.report.report import Report
from keras_robust.report.row import Row, wilson_interval

pytestmark = pytest.mark.slow_on_jax

evaluate = functools.partial(kr.evaluate, checks=False, verbose=0)

# From 0.31, so that class 0 has fewer examples, which are closer to the threshold.
X = np.linspace(0.31, 1, 50, dtype="float32").reshape(50, 1, 1, 1)
DISTANCES = abs(X[:, 0, 0, 0] - 0.5)
Y = (X[:, 0, 0, 0] > 0.5).astype("int32")
Y[[3, 30, 49]] = 2  # A class that the model never predicts.


def threshold(x):
    """Predicts class 1 if the only pixel is greater than 0.5, else 0, of four classes."""
    z = 10 * (x[:, 0, 0, 0] - 0.5)
    never = ops.full_like(z, -100)
    return ops.stack([-z, z, never, never], axis=1)


ATTACKS = {"small": kr.attacks.FGSM(0.05), "large": kr.attacks.PGD(0.15, num_steps=2)}
# The number of robust examples of each class: their distance is larger than the radius.
ROBUST = {
    name: [int((DISTANCES[c == Y] > epsilon).sum()) for c in (0, 1)] + [0, 0]
    for name, epsilon in [("clean", 0), ("small", 0.05), ("large", 0.15), ("worst case", 0.15)]
}
SIZES = [int((c == Y).sum()) for c in range(4)]


@pytest.mark.parametrize("one_hot", [False, True])
@pytest.mark.parametrize("worst_case_only", [False, True])
def test_accuracies_are_exact(worst_case_only, one_hot):
    labels = np.eye(4)[Y] if one_hot else Y
    report = evaluate(threshold, X, labels, ATTACKS, worst_case_only=worst_case_only, batch_size=7)
    assert 0 < ROBUST["large"][0] < ROBUST["small"][0] < SIZES[0]
    assert SIZES[3] == 0
    assert [one.num_examples for one in report.per_class] == SIZES
    for c, one in enumerate(report.per_class):
        assert (one.index, one.name) == (c, str(c))
        assert list(one.accuracy) == ["clean", "small", "large", "worst case"]
        for name, robust in ROBUST.items():
            expected = robust[c] / SIZES[c] if SIZES[c] else None
            assert one.accuracy[name] == expected
            if SIZES[c]:
                assert one.accuracy[name] == report.row(name).correct[c == Y].mean()
    assert report.worst_class == report.per_class[2]
    found = report.to_dict()
    json.dumps(found, allow_nan=False)
    assert found["worst_class"] == found["per_class"][2]
    assert found["per_class"][3] == {
        "index": 3,
        "name": "3",
        "num_examples": 0,
        "accuracy": dict.fromkeys(ROBUST),
    }


def make_report(correct, labels, names):
    """Returns a report of the flags `correct`."""
    labels = np.array(labels)
    report = Report(
        len(labels), batch_size=8, seed=0, worst_case_only=False, labels=labels, class_names=names
    )
    report.add(Row("clean", np.ones(len(labels), bool)))
    report.add(Row("worst case", np.array(correct, bool), radii={"linf": 0.1}))
    return report


def test_the_worst_class_is_named(capsys):
    report = make_report(
        [1, 0, 1, 1, 0, 0, 0, 1], [0, 0, 0, 2, 2, 2, 2, 2], ["cat", "dog", "<elk>"]
    )
    assert report.worst_class.name == "<elk>"
    low, high = wilson_interval(2, 5)
    sentence = (
        "Worst class: <elk>, with 40.0% worst-case accuracy "
        f"(95% interval {low:.1%} to {high:.1%}) on 5 examples. Classes without examples: 1."
    )
    assert report.class_statement == sentence
    summary = report.summary().splitlines()
    assert summary[summary.index(report.statement) + 1] == sentence
    assert not any(line.startswith("class ") for line in summary)
    shown = report.summary(per_class=True).splitlines()
    table = shown[4:8]
    assert shown[:4] + shown[9:] == summary
    assert table[0].split() == ["class", "examples", "clean", "worst", "case", "95%", "interval"]
    assert table[1].split()[:4] == ["cat", "3", "100.0%", "66.7%"]
    assert table[2].split() == ["dog", "0", "no", "examples"]
    assert table[3].split() == ["<elk>", "5", "100.0%", "40.0%", f"{low:.1%}", "to", f"{high:.1%}"]
    assert capsys.readouterr().out == "\n".join([*summary, *shown, ""])


def test_several_classes_are_worst():
    report = make_report([1, 0, 0, 1, 1], [0, 1, 2, 3, 3], list("abcd"))
    assert report.worst_class.name == "b"
    assert "Equally low: 1 more." in report.class_statement
    assert "without examples" not in report.class_statement


def test_there_is_no_worst_class_before_the_worst_case_is_known(tmp_path, capsys):
    report = make_report([1, 0, 0, 1, 1], [0, 1, 2, 3, 3], list("abcd"))
    report.rows.pop()
    report.save(tmp_path)
    for found in (report, Report.load(tmp_path)):
        assert found.worst_class is None
        assert found.class_statement == ""
        assert found.to_dict()["worst_class"] is None
        assert found.per_class[3].accuracy == {"clean": 1.0}
        assert found.summary(per_class=True).count("100.0%") >= 4
        assert "Worst class" not in found.summary()


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Returns a report and the folder in which it is saved."""
    folder = tmp_path_factory.mktemp("report")
    return evaluate(threshold, X, Y, ATTACKS, output=folder, class_names=list("abcd")), folder


def test_accuracies_are_saved_and_loaded(saved, tmp_path):
    report, folder = saved
    assert [one.name for one in report.per_class] == list("abcd")
    loaded = Report.load(folder)
    assert loaded.per_class == report.per_class
    np.testing.assert_array_equal(loaded.labels, Y)
    assert loaded.environment == report.environment
    loaded.save(tmp_path)
    assert Report.load(tmp_path).to_dict() == report.to_dict()


def test_accuracies_are_loaded_without_arrays(saved, tmp_path):
    report, folder = saved
    shutil.copy(folder / "report.json", tmp_path)
    loaded = Report.load(tmp_path)
    assert loaded.to_dict() == report.to_dict()
    assert loaded.summary(per_class=True) == report.summary(per_class=True)
    loaded.save(tmp_path)
    assert Report.load(tmp_path).to_dict() == report.to_dict()
    assert by_class_in(tmp_path) == by_class_in(folder)


def by_class_in(folder):
    """Returns the section on accuracy by class of the page."""
    page = (folder / "report.html").read_text()
    return re.search(r"<h2>Accuracy by class</h2>.*?</section>", page, re.DOTALL)[0]


@pytest.mark.parametrize("with_arrays", [False, True])
def test_a_report_without_classes_can_be_loaded(saved, tmp_path, with_arrays):
    report, folder = saved
    old = json.loads((folder / "report.json").read_text())
    for name in ("per_class", "worst_class", "class_statement"):
        del old[name]
    (tmp_path / "report.json").write_text(json.dumps(old))
    if with_arrays:
        with np.load(folder / "report.npz") as file:
            arrays = {name: value for name, value in file.items() if name != "labels"}
        np.savez(tmp_path / "report.npz", **arrays)
    loaded = Report.load(tmp_path)
    assert loaded.per_class == []
    assert loaded.worst_class is None
    assert loaded.to_dict()["rows"] == report.to_dict()["rows"]
    assert "Worst class" not in loaded.summary(per_class=True)
    loaded.save(tmp_path)
    assert "Accuracy by class" not in (tmp_path / "report.html").read_text()


def test_labels_that_do_not_match_the_report_are_an_error(saved, tmp_path):
    _, folder = saved
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    with np.load(tmp_path / "report.npz") as file:
        arrays = dict(file)
    np.savez(tmp_path / "report.npz", **{**arrays, "labels": arrays["labels"][::-1]})
    with pytest.raises(ValueError, match="does not belong"):
        Report.load(tmp_path)


@pytest.mark.parametrize("names", ["abcd", ["a", "b", "c"], list("abcde"), [0, 1, 2, 3], 4])
def test_bad_class_names(names):
    class Never(kr.attacks.FGSM):
        def run_checked(self, *args, **kwargs):
            raise AssertionError

    with pytest.raises(
        ValueError, match=r"`class_names` must be 4 strings.*Received: class_names="
    ):
        evaluate(threshold, X, Y, Never(0.1), class_names=names)
