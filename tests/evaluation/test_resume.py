"""An interrupted evaluation can be resumed, with the result of an uninterrupted one."""

import collections
import dataclasses
import functools
import json
from typing import ClassVar

import keras
import numpy as np
import pytest
from keras import ops

import keras_robust as kr
from keras_robust.evaluation.progress import Progress

pytestmark = pytest.mark.slow_on_jax

# The validity checks are slow, and have separate tests.
evaluate = functools.partial(kr.evaluate, checks=False)

X = np.linspace(0, 1, 40, dtype="float32").reshape(40, 1, 1, 1)
Y = (X[:, 0, 0, 0] > 0.5).astype("int32")


def threshold(x):
    z = 10 * (x[:, 0, 0, 0] - 0.5)
    return ops.stack([-z, z], axis=1)


class Stopping(kr.attacks.PGD):
    """PGD that counts its batches, and raises an error at the batch `stop_at`."""

    batches: ClassVar = collections.Counter()
    stop_at: ClassVar = {}

    def run_checked(self, *args, **kwargs):
        if self.batches[self.epsilon] == self.stop_at.get(self.epsilon):
            raise self.stop_at["error"]
        self.batches[self.epsilon] += 1
        return super().run_checked(*args, **kwargs)


@pytest.fixture(autouse=True)
def _fresh():
    Stopping.batches.clear()
    Stopping.stop_at = {}


def contents(report):
    """Returns the contents of a report without its date."""
    rows = [
        [row.correct, row.attacked, *(row.measures[name] for name in sorted(row.measures))]
        for row in report.rows
    ]
    samples = {name: list(samples) for name, samples in report.samples.items()}
    return {**report.to_dict(), "date": None}, rows, samples


def assert_same(a, b):
    (dict_a, rows_a, samples_a), (dict_b, rows_b, samples_b) = contents(a), contents(b)
    assert dict_a == dict_b
    assert samples_a.keys() == samples_b.keys()
    for values in (rows_a, rows_b), (list(samples_a.values()), list(samples_b.values())):
        for arrays_a, arrays_b in zip(*values, strict=True):
            for array_a, array_b in zip(arrays_a, arrays_b, strict=True):
                np.testing.assert_array_equal(array_a, array_b)


@pytest.mark.parametrize(
    ("attack", "batch", "error", "worst_case_only"),
    [
        (0.05, 0, KeyboardInterrupt(), False),
        (0.05, 2, RuntimeError("out of memory"), True),
        (0.06, 1, KeyboardInterrupt(), True),
        (0.06, 1, RuntimeError("out of memory"), False),
    ],
    ids=str,
)
def test_an_interrupted_evaluation_continues(
    trained_model, embedded_data, tmp_path, attack, batch, error, worst_case_only
):
    x, y = (values[:60] for values in embedded_data[1])
    attacks = [Stopping(epsilon, num_steps=2) for epsilon in (0.05, 0.06)]
    options = {"batch_size": 16, "worst_case_only": worst_case_only, "verbose": 0}
    uninterrupted = evaluate(trained_model, x, y, attacks, output=tmp_path / "whole", **options)
    needed = dict(Stopping.batches)
    assert needed[0.05] >= 3
    Stopping.batches.clear()

    Stopping.stop_at = {attack: batch, "error": error}
    with pytest.raises(type(error)):
        evaluate(trained_model, x, y, attacks, output=tmp_path / "a", **options)
    assert Stopping.batches[attack] == batch
    Stopping.stop_at = {}
    resumed = evaluate(trained_model, x, y, attacks, output=tmp_path / "a", resume=True, **options)
    assert Stopping.batches == needed
    assert_same(resumed, uninterrupted)
    saved = json.loads((tmp_path / "a" / "report.json").read_text())
    assert saved == resumed.to_dict()

    # A finished evaluation is not repeated either.
    again = evaluate(trained_model, x, y, attacks, output=tmp_path / "a", resume=True, **options)
    assert Stopping.batches == needed
    assert_same(again, uninterrupted)


def test_the_report_of_an_interrupted_evaluation_is_incomplete(tmp_path):
    attacks = {"finished": Stopping(0.1), "interrupted": Stopping(0.2)}
    Stopping.stop_at = {0.2: 0, "error": KeyboardInterrupt()}
    (tmp_path / "report.html").write_text("of an earlier evaluation")
    with pytest.raises(KeyboardInterrupt):
        evaluate(threshold, X, Y, attacks, output=tmp_path, verbose=0)
    saved = json.loads((tmp_path / "report.json").read_text())
    assert [row["name"] for row in saved["rows"]] == ["clean", "finished"]
    assert not saved["complete"]
    assert "not finished" in saved["statement"]
    assert saved["rows"][1]["accuracy"] == (abs(X - 0.5) > 0.1).mean()
    assert not (tmp_path / "report.html").exists()


def test_without_resume_the_evaluation_starts_again(tmp_path):
    for _ in range(2):
        evaluate(threshold, X, Y, [Stopping(0.1)], output=tmp_path, batch_size=20, verbose=0)
    assert Stopping.batches[0.1] == 4
    evaluate(threshold, X, Y, [Stopping(0.2)], output=tmp_path, verbose=0)
    assert len(list((tmp_path / "progress").glob("00-*.npz"))) == 1


def test_resume_in_an_empty_folder_starts(tmp_path):
    report = evaluate(
        threshold, X, Y, [kr.attacks.FGSM(0.1)], output=tmp_path / "new", resume=True, verbose=0
    )
    assert report.complete


def model_with(weight, activation=None):
    model = keras.Sequential(
        [
            keras.Input((1, 1, 1)),
            keras.layers.Flatten(name="flatten"),
            keras.layers.Dense(2, activation=activation, name="dense"),
        ],
        name="classifier",
    )
    model.set_weights([np.array([[-weight, weight]], "float32"), np.zeros(2, "float32")])
    return model


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({}, None),
        ({"model": model_with(1.0)}, None),
        ({"model": model_with(2.0)}, "model weights"),
        ({"model": model_with(1.0, "relu")}, "model configuration"),
        ({"x": X / 2}, "images"),
        ({"x": X.astype("float16")}, "images"),
        ({"y": 1 - Y}, "labels"),
        ({"attacks": {"a": kr.attacks.FGSM(0.2)}}, "arguments of a"),
        ({"attacks": {"a": kr.attacks.PGD(0.1)}}, "arguments of a"),
        ({"attacks": {"b": kr.attacks.FGSM(0.1)}}, "arguments of a, arguments of b, attacks"),
        ({"seed": 1}, "seed"),
        ({"batch_size": 7, "seed": 3}, "batch_size, seed"),
        ({"worst_case_only": True}, "worst_case_only"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_only_the_same_evaluation_is_resumed(tmp_path, changed, named):
    arguments = {
        "model": model_with(1.0),
        "x": X,
        "y": Y,
        "attacks": {"a": kr.attacks.FGSM(0.1)},
        "output": tmp_path,
        "verbose": 0,
    }
    evaluate(**arguments)
    before = (tmp_path / "report.json").read_bytes()
    if named is None:
        evaluate(**arguments | changed, resume=True)
        return
    with pytest.raises(ValueError, match=f"run with other {named}\\. "):
        evaluate(**arguments | changed, resume=True)
    assert (tmp_path / "report.json").read_bytes() == before


def test_a_callable_is_compared_by_its_predictions(tmp_path):
    def other(x):
        return threshold(x)[:, ::-1]

    other.__qualname__ = threshold.__qualname__
    attacks = [kr.attacks.FGSM(0.1)]
    evaluate(threshold, X, Y, attacks, output=tmp_path, verbose=0)
    with pytest.raises(ValueError, match="other predictions"):
        evaluate(other, X, Y, attacks, output=tmp_path, resume=True, verbose=0)


def test_the_weights_of_a_surrogate_are_compared(tmp_path):
    @dataclasses.dataclass
    class Surrogate:
        model: keras.Model

        def __call__(self, model, x, y):
            return self.model(x)

        def __repr__(self):
            return "Surrogate()"

    def run(weight, **options):
        attack = kr.attacks.FGSM(0.1, objective=Surrogate(model_with(weight)))
        evaluate(model_with(1.0), X, Y, {"a": attack}, output=tmp_path, verbose=0, **options)

    run(1.0)
    run(1.0, resume=True)
    with pytest.raises(ValueError, match="other arguments of a"):
        run(2.0, resume=True)


def test_interrupted_writes_leave_no_partial_files(tmp_path):
    progress = Progress(tmp_path / "progress", {"a": "1"})

    def broken():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        progress.arrays("x", broken)
    (tmp_path / "progress" / "x.npz.part").write_bytes(b"half of a file")
    again = Progress(tmp_path / "progress", {"a": "1"}, resume=True)
    values = again.arrays("x", lambda: {"b": np.arange(3)})
    np.testing.assert_array_equal(values["b"], [0, 1, 2])
    values = again.arrays("x", broken)
    np.testing.assert_array_equal(values["b"], [0, 1, 2])
    assert not list((tmp_path / "progress").glob("*.part"))


def test_other_files_in_the_folder_are_kept(tmp_path):
    (tmp_path / "progress").mkdir()
    for name in ("notes.txt", "progress/notes.txt"):
        (tmp_path / name).write_text("mine")
    evaluate(threshold, X, Y, [kr.attacks.FGSM(0.1)], output=tmp_path, verbose=0)
    for name in ("notes.txt", "progress/notes.txt"):
        assert (tmp_path / name).read_text() == "mine"
