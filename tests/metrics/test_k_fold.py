"""Stratified cross-validation by `k_fold`."""

import importlib.util
import json

import numpy as np
import pytest
from keras import ops

from keras_robust.evaluation import KFold, k_fold

pytestmark = pytest.mark.slow_on_jax

Y = np.repeat([0, 1, 2], [30, 20, 10])
X = np.arange(60, dtype="float32").reshape(60, 1)


def remember(x, y):
    """Returns the training data as the model."""
    return x.reshape(-1).astype(int)


def test_each_example_is_measured_once_in_stratified_folds():
    seen = []

    def measure(trained_on, x, y):
        tested_on = x.reshape(-1).astype(int)
        seen.append(tested_on)
        assert sorted([*trained_on, *tested_on]) == list(range(60))
        np.testing.assert_array_equal(np.bincount(y), [6, 4, 2])
        np.testing.assert_array_equal(y, Y[tested_on])
        return {"first": float(tested_on[0])}

    result = k_fold(remember, X, Y, measure=measure, num_folds=5, verbose=0)
    assert sorted(np.concatenate(seen)) == list(range(60))
    assert [fold["first"] for fold in result.folds] == [float(part[0]) for part in seen]
    parts = [sorted(part) for part in seen]
    seen.clear()
    k_fold(remember, X, Y, measure=measure, num_folds=5, seed=1, verbose=0)
    assert [sorted(part) for part in seen] != parts


def test_intervals_agree_with_student_t():
    # The quantile of Student's t with 4 degrees of freedom is 2.776. The deviation is 0.1.
    folds = [{"a": 0.5 + d, "b": 1.0} for d in (-0.1, -0.1, 0.0, 0.1, 0.1)]
    result = KFold(folds)
    assert result.mean("a") == pytest.approx(0.5)
    half = 2.776445 * 0.1 / 5**0.5
    np.testing.assert_allclose(result.interval("a"), (0.5 - half, 0.5 + half), rtol=1e-6)
    assert result.interval("b") == (1.0, 1.0)
    with pytest.raises(ValueError, match=r"`name` must be one of \['a', 'b'\]"):
        result.mean("c")


def test_coverage_of_the_intervals():
    # 95% of 1000 intervals from five normal values each contain the mean, up to 6 sigma.
    values = np.random.default_rng(0).normal(size=(1000, 5))
    intervals = np.array([KFold([{"v": float(v)} for v in row]).interval("v") for row in values])
    share = ((intervals[:, 0] < 0) & (intervals[:, 1] > 0)).mean()
    assert abs(share - 0.95) < 6 * np.sqrt(0.95 * 0.05 / 1000)


def test_the_default_is_the_accuracy():
    def fit(x, y):
        return lambda x: ops.stack([30 - x[:, 0], x[:, 0] - 30, ops.zeros_like(x[:, 0])], 1)

    result = k_fold(fit, X, Y, num_folds=10, verbose=0)
    # Examples of classes 0 and 1 are correct except example 30, whose scores are all 0. Class 2 is
    # never predicted.
    assert sum(fold["accuracy"] for fold in result.folds) * 6 == pytest.approx(49)


def test_table_and_json():
    result = KFold([{"accuracy": 0.5, "a": 1.0}, {"accuracy": 0.7, "a": 3.0}])
    lines = str(result).splitlines()
    assert lines[1].split() == ["accuracy", "0.6", "-0.6706", "to", "1.871"]
    assert lines[-1] == "2 folds"
    again = json.loads(json.dumps(result.to_dict()))
    assert again["figures"]["a"]["mean"] == 2.0
    assert again["figures"]["a"]["confidence_95"] == list(result.interval("a"))
    assert again["folds"] == result.folds


def random_number(model, x, y):
    return {"random": float(np.random.random())}


def test_finished_folds_are_saved_and_the_rest_resumed(tmp_path):
    uninterrupted = k_fold(remember, X, Y, measure=random_number, num_folds=4, verbose=0)
    fitted = []

    def interrupted(x, y):
        if len(fitted) == 2:
            raise KeyboardInterrupt
        fitted.append(len(x))
        return remember(x, y)

    arguments = {
        "measure": random_number,
        "num_folds": 4,
        "output": tmp_path / "a" / "folds",
        "verbose": 0,
    }
    with pytest.raises(KeyboardInterrupt):
        k_fold(interrupted, X, Y, **arguments)
    assert {p.name for p in (tmp_path / "a" / "folds").iterdir()} == {
        "settings.json", "fold_0.json", "fold_1.json",
    }  # fmt: skip

    fitted.clear()

    def counted(x, y):
        fitted.append(len(x))
        return remember(x, y)

    result = k_fold(counted, X, Y, **arguments)
    assert len(fitted) == 2
    assert result.folds == uninterrupted.folds
    saved = json.loads((tmp_path / "a" / "folds" / "k_fold.json").read_text())
    assert saved == result.to_dict()
    fitted.clear()
    assert k_fold(counted, X, Y, **arguments).folds == uninterrupted.folds
    assert not fitted


@pytest.mark.parametrize("change", [{"num_folds": 5}, {"seed": 1}, {"x": X + 1}, {"y": Y[::-1]}])
def test_a_folder_with_folds_of_other_settings_is_an_error(tmp_path, change):
    arguments = {"x": X, "y": Y, "measure": random_number, "num_folds": 4, "output": tmp_path}
    k_fold(remember, **arguments, verbose=0)
    with pytest.raises(ValueError, match="holds the folds of another cross-validation"):
        k_fold(remember, **{**arguments, **change}, verbose=0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_folds": 1}, "`num_folds` must be at least 2"),
        ({"num_folds": 11}, "num_folds=11, 10 examples of class 2"),
        ({"y": Y[:5]}, "same number of examples"),
        ({"y": Y - 1}, "from 0 to"),
        ({"y": None}, "`y` must be given"),
        ({"measure": lambda *args: 0.5}, "`measure` must return a mapping"),
        ({"measure": lambda *args: {}}, "`measure` must return a mapping"),
        ({"measure": lambda *args: {"a": float("nan")}}, "finite"),
        ({"measure": lambda m, x, y: {str(x[0]): 1.0}}, "the same names"),
    ],
)
def test_bad_input(arguments, message):
    arguments = {"x": X, "y": Y, "num_folds": 3, "measure": random_number, **arguments}
    with pytest.raises(ValueError, match=message):
        k_fold(remember, **arguments, verbose=0)


def test_missing_scikit_learn_is_an_error(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"keras-robust\[analysis\]"):
        k_fold(remember, X, Y)
