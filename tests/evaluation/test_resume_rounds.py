"""An evaluation resumes after its last finished round, with an uninterrupted one's result."""

import collections
import functools
import json

import keras
import ml_dtypes
import numpy as np
import pytest
from keras import ops

import keras_robust as kr
from keras_robust.attacks.insistent_apgd import InsistentAPGD
from keras_robust.attacks.journal import Journal
from keras_robust.attacks.rounds import Rounds
from keras_robust.evaluation.progress import Progress

pytestmark = pytest.mark.slow_on_jax

evaluate = functools.partial(kr.evaluate, batch_size=3, verbose=0)


class Random(keras.layers.Layer):
    """Adds noise, also in inference mode."""

    def build(self, shape):
        self.generator = keras.random.SeedGenerator(0)

    def call(self, x):
        return x + 0.02 * keras.random.normal(ops.shape(x), seed=self.generator)


class Joint(keras.layers.Layer):
    """Subtracts a fraction of the batch's mean from each example."""

    depends_on_batch = True

    def call(self, x):
        return x - 0.3 * ops.mean(x, axis=0, keepdims=True)


@pytest.fixture(scope="module")
def problem():
    """Makes a classifier with a given first layer, images, and its predictions as labels."""

    @functools.cache
    def make(layer=keras.layers.Identity):
        rng = np.random.default_rng(3)
        layers = [keras.layers.Flatten(), layer(), keras.layers.Dense(5)]
        model = keras.Sequential([keras.Input((4, 4, 1)), *layers])
        model.layers[-1].set_weights([rng.normal(size=(16, 5)), 0.1 * rng.normal(size=5)])
        x = rng.random((7, 4, 4, 1), "float32")
        return model, x, model.predict(x, verbose=0).argmax(axis=1)

    return make


@pytest.fixture
def rounds(monkeypatch):
    """Records finished rounds, and interrupts a round after `limit["rounds"]` finished ones."""
    run_round = Rounds._run_round
    rounds = collections.namedtuple("Rounds", ["finished", "limit"])([], {})

    def run(self, function, index, active):
        run_round(self, function, index, active)
        if len(rounds.finished) == rounds.limit.get("rounds"):
            raise rounds.limit["error"]
        rounds.finished.append((type(self.attack).__name__, index))

    monkeypatch.setattr(Rounds, "_run_round", run)
    return rounds


def contents(report):
    """Returns the contents of a report without its date."""
    rows = [
        [row.correct, row.attacked, *(row.measures[name] for name in sorted(row.measures))]
        for row in report.rows
    ]
    samples = [list(samples) for samples in report.samples.values()]
    return {**report.to_dict(), "date": None}, rows, samples


def assert_same(a, b):
    (dict_a, rows_a, samples_a), (dict_b, rows_b, samples_b) = contents(a), contents(b)
    assert dict_a == dict_b
    for arrays_a, arrays_b in zip([*rows_a, *samples_a], [*rows_b, *samples_b], strict=True):
        for array_a, array_b in zip(arrays_a, arrays_b, strict=True):
            np.testing.assert_array_equal(array_a, array_b)


def interrupted_after_each_round(run, rounds, error):
    """Interrupts `run` in each round but the first and resumes it, until it returns a report."""
    finished = []
    for _ in range(200):
        rounds.finished.clear()
        rounds.limit.update(rounds=1, error=error)
        try:
            report = run()
        except type(error):
            assert len(rounds.finished) == 1
            finished += rounds.finished
        else:
            return report, finished + rounds.finished
    raise AssertionError


pgd = kr.attacks.PGD(0.03, num_steps=2, num_restarts=2)
ATTACKS = {
    "PGD": kr.attacks.PGD(0.05, num_steps=3, num_restarts=3),
    "MultiTargeted": kr.attacks.MultiTargeted(0.05, num_steps=3),
    "APGD": kr.attacks.APGD(0.05, loss="dlr_targeted", num_steps=4, num_restarts=2),
    "APGD in L1": kr.attacks.APGD(1.0, norm="l1", num_steps=4, num_restarts=2),
    "APGD, by distance": kr.attacks.APGD(
        0.05, loss="margin_targeted", num_steps=4, num_targets=3, target_order="distance"
    ),
    "APGD, insistent": InsistentAPGD(
        0.05,
        loss="margin_targeted",
        num_steps=4,
        num_restarts=2,
        num_targets=2,
        target_order="distance",
    ),
    "FAB in a ball": kr.attacks.FAB(0.05, num_steps=2),
    "FAB": kr.attacks.FAB(norm="l2", num_steps=3, num_restarts=2, num_targets=2),
    "DeepFool": kr.attacks.DeepFool(num_steps=9, overshoot=0.0),
    "Square": kr.attacks.Square(0.05, num_queries=40),
    "Square, restarted": kr.attacks.Square(0.2, norm="l2", num_queries=15, num_restarts=2),
    "Square in L1": kr.attacks.Square(1.0, norm="l1", num_queries=20),
    "HopSkipJump": kr.attacks.HopSkipJump(num_queries=250),
    "HopSkipJump in a ball": kr.attacks.HopSkipJump(0.1, norm="linf", num_queries=250),
    "CarliniWagnerL2": kr.attacks.CarliniWagnerL2(
        num_steps=20, binary_search_steps=3, learning_rate=0.05
    ),
    "Ensemble": kr.attacks.Ensemble(
        [
            kr.attacks.FGSM(0.01),
            kr.attacks.Ensemble([pgd, kr.attacks.Square(0.03, num_queries=20)]),
            kr.attacks.Ensemble([kr.attacks.GaussianNoise(0.1)]),
            pgd,
        ]
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ATTACKS)
def test_every_round_of_every_attack_can_be_resumed(problem, rounds, tmp_path, name):
    options = {"attacks": {name: ATTACKS[name]}, "checks": False}
    uninterrupted = evaluate(*problem(), output=tmp_path / "whole", **options)
    needed = rounds.finished[:]
    assert len(needed) > 3  # More rounds than batches.

    run = functools.partial(evaluate, *problem(), output=tmp_path / "a", resume=True, **options)
    resumed, finished = interrupted_after_each_round(run, rounds, KeyboardInterrupt())
    assert finished == needed
    assert_same(resumed, uninterrupted)
    files = [
        {path.name: dict(np.load(path)) for path in (tmp_path / folder / "progress").glob("*.npz")}
        for folder in ("whole", "a")
    ]
    assert files[0].keys() == files[1].keys()
    for file, arrays in files[0].items():
        for array, values in arrays.items():
            np.testing.assert_array_equal(files[1][file][array], values)
    assert not list((tmp_path / "a" / "progress" / "rounds").iterdir())


@pytest.mark.parametrize("layer", [Random, Joint])
def test_random_models_and_models_that_depend_on_the_batch(problem, rounds, tmp_path, layer):
    options = {"attacks": {"all": ATTACKS["Ensemble"]}, "checks": False}
    uninterrupted = evaluate(*problem(layer), **options)
    needed = rounds.finished[:]
    run = functools.partial(evaluate, *problem(layer), output=tmp_path, resume=True, **options)
    resumed, finished = interrupted_after_each_round(run, rounds, RuntimeError("out of memory"))
    assert finished == needed
    assert_same(resumed, uninterrupted)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float16", ml_dtypes.bfloat16, "float64"])
def test_images_of_any_precision(problem, rounds, tmp_path, dtype):
    model, x, y = problem()
    options = {"attacks": {"all": ATTACKS["Ensemble"]}, "checks": False}
    uninterrupted = evaluate(model, x.astype(dtype), y, **options)
    run = functools.partial(
        evaluate, model, x.astype(dtype), y, output=tmp_path, resume=True, **options
    )
    resumed, _ = interrupted_after_each_round(run, rounds, KeyboardInterrupt())
    assert_same(resumed, uninterrupted)


@pytest.mark.slow
@pytest.mark.parametrize("version", ["standard", "rand"])
def test_autoattack(problem, rounds, tmp_path, version):
    options = {"attacks": {"AutoAttack": kr.attacks.AutoAttack(0.04, version=version)}}
    options["checks"] = False
    uninterrupted = evaluate(*problem(), **options)
    needed = rounds.finished[:]
    assert 0 < uninterrupted.accuracy("AutoAttack") < 1
    run = functools.partial(evaluate, *problem(), output=tmp_path, resume=True, **options)
    resumed, finished = interrupted_after_each_round(run, rounds, KeyboardInterrupt())
    assert finished == needed
    assert_same(resumed, uninterrupted)


@pytest.mark.slow
def test_checks_and_pictures_are_resumed(problem, rounds, tmp_path):
    options = {"attacks": {"PGD": kr.attacks.PGD(0.05, num_steps=3)}, "pictures": True}
    uninterrupted = evaluate(*problem(), **options)
    needed = rounds.finished[:]
    names = {name for name, _ in needed}
    assert {"PGD", "FGSM", "Square"} <= names
    run = functools.partial(evaluate, *problem(), output=tmp_path, resume=True, **options)
    rounds.finished.clear()
    finished = []
    for number in (5, 20, 30, 12):
        rounds.limit.update(rounds=number, error=KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            run()
        finished += rounds.finished
        rounds.finished.clear()
    rounds.limit.clear()
    resumed = run()
    assert finished + rounds.finished == needed
    assert_same(resumed, uninterrupted)
    assert resumed.checks == uninterrupted.checks
    assert resumed.curves == uninterrupted.curves
    np.testing.assert_array_equal(resumed.geometry.attacked, uninterrupted.geometry.attacked)


@pytest.mark.slow
def test_minimum_norm_attacks_have_no_curve(problem):
    attacks = {"FAB": kr.attacks.FAB(num_steps=2), "PGD": kr.attacks.PGD(0.1, num_steps=2)}
    report = evaluate(*problem(), attacks=attacks, pictures=True, checks=False)
    assert [list(curve) for curve in report.curves.values()] == [["PGD"], ["PGD"]]
    del attacks["PGD"]
    report = evaluate(*problem(), attacks=attacks, pictures=True, checks=False)
    assert report.curves == {}


def test_an_error_in_one_attack_keeps_the_results_of_the_others(problem, rounds, tmp_path):
    class Fails(kr.attacks.PGD):
        """Raises an error until `is_fixed` is set."""

        is_fixed = False

        def run_checked(self, *args, **kwargs):
            if not self.is_fixed:
                raise RuntimeError("out of memory")
            return super().run_checked(*args, **kwargs)

    fails = Fails(0.03, num_steps=2)
    attacks = {
        "PGD": ATTACKS["PGD"],
        "all": kr.attacks.Ensemble([kr.attacks.FGSM(0.01), pgd, fails, pgd]),
    }
    options = {"attacks": attacks, "output": tmp_path, "checks": False}
    with pytest.raises(RuntimeError, match="out of memory"):
        evaluate(*problem(), **options)
    before = rounds.finished[:]
    saved = json.loads((tmp_path / "report.json").read_text())
    assert [row["name"] for row in saved["rows"]] == ["clean", "PGD"]

    Fails.is_fixed = True
    resumed = evaluate(*problem(), resume=True, **options)
    finished = rounds.finished[:]
    rounds.finished.clear()
    assert_same(resumed, evaluate(*problem(), **options))
    assert finished == rounds.finished
    assert finished[: len(before)] == before


def test_an_evaluation_of_an_earlier_version_cannot_be_resumed(problem, tmp_path):
    options = {"attacks": [kr.attacks.FGSM(0.01)], "output": tmp_path, "checks": False}
    evaluate(*problem(), **options)
    file = tmp_path / "progress" / "fingerprint.json"
    facts = json.loads(file.read_text())
    for version in (None, "0.0.9"):
        other = {name: value for name, value in facts.items() if name != "keras_robust version"}
        if version is not None:
            other["keras_robust version"] = version
        file.write_text(json.dumps(other))
        with pytest.raises(ValueError, match="run with other keras_robust version\\. "):
            evaluate(*problem(), resume=True, **options)


def test_saved_rounds_are_deleted_when_they_are_no_longer_needed(tmp_path):
    folder = tmp_path / "progress"

    def attack(journal, interrupted=True):
        inner = journal.member(1, "a", 1).member(0, "b", 0)
        assert inner.read().keys() == ({"values"} if not interrupted else set())
        journal.write(values=np.arange(2))
        inner.write(values=np.arange(3))
        inner.write(values=np.arange(4))
        if interrupted:
            raise KeyboardInterrupt
        np.testing.assert_array_equal(inner.read()["values"], np.arange(4))
        return {"found": np.arange(5)}

    progress = Progress(folder, {"a": "1"})
    with pytest.raises(KeyboardInterrupt):
        progress.attacked("x", attack)
    assert {path.name for path in (folder / "rounds").iterdir()} == {"x.npz", "x.1.0.npz"}
    (folder / "rounds" / "x.1.0.npz.part").write_bytes(b"half of a file")
    progress = Progress(folder, {"a": "1"}, resume=True)
    found = progress.attacked("x", functools.partial(attack, interrupted=False))
    np.testing.assert_array_equal(found["found"], np.arange(5))
    assert not list((folder / "rounds").iterdir())

    # A new evaluation first deletes the saved rounds of the previous one.
    with pytest.raises(KeyboardInterrupt):
        progress.attacked("y", attack)
    with pytest.raises(ValueError, match="other a"):
        Progress(folder, {"a": "2"}, resume=True)
    assert list((folder / "rounds").iterdir())
    Progress(folder, {"a": "2"})
    assert not list((folder / "rounds").iterdir())


def test_without_a_folder_nothing_is_saved():
    journal = Journal()
    journal.write(values=np.arange(2))
    assert journal.read() == {}
    assert Progress().attacked("x", lambda journal: journal.read()) == {}
