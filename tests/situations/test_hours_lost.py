"""Long evaluations show their progress inside of a batch, and lose at most one round.

A round is one restart, one target class, or some of Square's queries.
"""

import io
import os
import re
import signal
import subprocess
import sys
import textwrap
import time

import keras
import numpy as np
import pytest

import keras_robust as kr
from keras_robust.attacks.rounds import Rounds

pytestmark = pytest.mark.slow_on_jax

KERNEL = np.random.default_rng(0).normal(size=(36, 4)).astype("float32")
X = np.random.default_rng(1).random((6, 6, 6, 1), "float32")
Y = (X.reshape(6, -1) @ KERNEL).argmax(axis=1)
# At most three images, and Square's first 10 queries with one query before and one after.
LONGEST_ROUND = 3 * (10 + 2)
# Every evaluation first checks outputs and classifies the clean images.
START = 2 * len(X)


class Service:
    """A remote classifier, which is interrupted by Ctrl-C or a lost connection."""

    def __init__(self):
        self.num_queries, self.ends_at, self.error = 0, None, KeyboardInterrupt()

    def __call__(self, x):
        if self.ends_at is not None and self.num_queries >= self.ends_at:
            raise self.error
        self.num_queries += len(x)
        return x.reshape(len(x), -1) @ KERNEL

    def __repr__(self):
        return "Service()"


def evaluate(service, output, **options):
    attack = kr.attacks.Ensemble(
        [kr.attacks.GaussianNoise(0.02), kr.attacks.Square(0.05, num_queries=20)]
    )
    options = {"batch_size": 3, "verbose": 0, "checks": False, **options}
    return kr.evaluate(kr.BlackBox(service), X, Y, {"all": attack}, output=output, **options)


def figures(report):
    """Returns all figures of a report, without its date."""
    rows = [
        [row.correct, *(row.measures[name] for name in sorted(row.measures))] for row in report.rows
    ]
    return {**report.to_dict(), "date": None}, [np.array(row, float).tolist() for row in rows]


@pytest.mark.slow
@pytest.mark.parametrize(
    "error",
    [pytest.param(KeyboardInterrupt(), marks=pytest.mark.slow), ConnectionError("lost")],
    ids=str,
)
def test_an_interruption_loses_at_most_one_round(tmp_path, error):
    service = Service()
    uninterrupted = evaluate(service, tmp_path / "whole")
    needed = service.num_queries
    assert 0 < uninterrupted.accuracy("all") < 1
    for share in (0.3, 0.5, 0.7):
        service, output, ends_at = Service(), tmp_path / str(share), int(share * needed)
        service.ends_at, service.error = ends_at, error
        with pytest.raises(type(error)):
            evaluate(service, output)
        service.ends_at = None
        resumed = evaluate(service, output, resume=True)
        assert figures(resumed) == figures(uninterrupted)
        assert service.num_queries <= needed + START + LONGEST_ROUND


def test_many_interruptions(tmp_path):
    service = Service()
    uninterrupted = evaluate(service, tmp_path / "whole")
    needed, service = service.num_queries, Service()
    for _ in range(100):
        service.ends_at = service.num_queries + START + 2 * LONGEST_ROUND
        try:
            resumed = evaluate(service, tmp_path / "a", resume=True)
            break
        except KeyboardInterrupt:
            continue
    assert service.num_queries > needed + START
    assert figures(resumed) == figures(uninterrupted)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"seed": 1}, "seed"),
        ({"batch_size": 4}, "batch_size"),
    ],
    ids=str,
)
def test_only_the_same_evaluation_resumes_inside_of_a_batch(tmp_path, changed, named):
    service = Service()
    service.ends_at = START + LONGEST_ROUND + 10
    with pytest.raises(KeyboardInterrupt):
        evaluate(service, tmp_path)
    assert list((tmp_path / "progress" / "rounds").iterdir())
    service.ends_at = None
    with pytest.raises(ValueError, match=f"other {named}"):
        evaluate(service, tmp_path, resume=True, **changed)
    # Without `resume`, the evaluation starts again.
    uninterrupted = evaluate(Service(), tmp_path / "whole", **changed)
    assert figures(evaluate(service, tmp_path, **changed)) == figures(uninterrupted)


def test_a_finished_evaluation_has_no_saved_rounds(tmp_path):
    evaluate(Service(), tmp_path)
    assert not list((tmp_path / "progress" / "rounds").iterdir())


class Terminal(io.StringIO):
    """Imitates a terminal."""

    def isatty(self):
        return True


def shown_by(monkeypatch, run):
    """Returns the lines that `run` shows in a terminal, including overwritten ones."""
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setenv("COLUMNS", "120")  # Lines are cut at the width of the terminal.
    run()
    monkeypatch.undo()
    return [line.strip() for line in re.split("[\r\n]", terminal.getvalue()) if line.strip()]


class Slow(Service):
    """A slow classifier."""

    def __call__(self, x):
        time.sleep(0.02)
        return super().__call__(x)


def test_progress_within_a_batch(monkeypatch, tmp_path):
    lines = shown_by(monkeypatch, lambda: evaluate(Slow(), tmp_path, verbose=1))
    rounds = [re.search(r"batch (\d)/2, Square 2/2, round (\d+)/\d+", line) for line in lines]
    seen = {match.groups() for match in rounds if match}
    assert {batch for batch, _ in seen} == {"1", "2"}
    assert len(seen) >= 3
    assert any(re.search(r"about 0:00:0\d left", line) for line in lines)


def test_progress_of_an_attack_without_evaluate(monkeypatch):
    attack = kr.attacks.Square(1e-6, num_queries=20)
    lines = shown_by(monkeypatch, lambda: attack.run(kr.BlackBox(Slow()), X, Y, seed=0, verbose=1))
    for number in (1, 2, 3, 4):
        assert any(f"round {number}/4 on 6 images" in line for line in lines)
    assert lines[-1].endswith("6 of 6 images are robust")


def test_attacks_by_gradients_resume_after_the_last_round(tmp_path, monkeypatch):
    model = keras.Sequential(
        [keras.Input((6, 6, 1)), keras.layers.Flatten(), keras.layers.Dense(4, use_bias=False)]
    )
    model.set_weights([KERNEL])
    attack = kr.attacks.PGD(0.03, num_steps=2, num_restarts=4)
    options = {"attacks": [attack], "batch_size": 3, "verbose": 0, "checks": False}
    uninterrupted = kr.evaluate(model, X, Y, output=tmp_path / "whole", **options)
    assert 0 < uninterrupted.accuracy("worst case") < 1

    run_round, finished, allowed = Rounds._run_round, [], 0

    def interrupted(self, function, index, active):
        run_round(self, function, index, active)
        if len(finished) == allowed:
            raise KeyboardInterrupt
        finished.append(index)

    monkeypatch.setattr(Rounds, "_run_round", interrupted)
    for allowed in range(8):
        finished.clear()
        with pytest.raises(KeyboardInterrupt):
            kr.evaluate(model, X, Y, output=tmp_path / "a", **options)
        allowed = None
        resumed = kr.evaluate(model, X, Y, output=tmp_path / "a", resume=True, **options)
        assert figures(resumed) == figures(uninterrupted)
        assert finished == [0, 1, 2, 3] * 2  # No round is missing or repeated.


@pytest.mark.slow
def test_an_evaluation_can_be_resumed_after_kills_at_any_time(tmp_path):
    program = """
        import sys, time
        import numpy as np
        import keras_robust as kr

        kernel = np.random.default_rng(0).normal(size=(36, 4)).astype("float32")
        x = np.random.default_rng(1).random((10, 6, 6, 1), "float32")

        def service(x):
            time.sleep(0.02)
            return x.reshape(len(x), -1) @ kernel

        attacks = [kr.attacks.Square(epsilon, num_queries=200) for epsilon in (0.02, 0.03)]
        report = kr.evaluate(
            kr.BlackBox(service), x, service(x).argmax(axis=1), attacks, batch_size=5,
            checks=False, output=sys.argv[1], resume=True,
        )
    """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    environment = {**os.environ, "KERAS_BACKEND": keras.backend.backend()}

    def run(output, seconds=None):
        process = subprocess.Popen([*command, output], env=environment)
        rounds = output / "progress" / "rounds"
        if seconds is not None:
            while not (rounds.exists() and list(rounds.iterdir())) and process.poll() is None:
                time.sleep(0.01)
            time.sleep(seconds)
            process.kill()
        return process.wait()

    assert run(tmp_path / "whole") == 0
    kills = [run(tmp_path / "a", seconds) for seconds in (0.0, 0.3, 1.1, 0.7, 2.3)]
    assert kills[0] == -signal.SIGKILL
    assert run(tmp_path / "a") == 0
    uninterrupted, resumed = (
        {path.name: dict(np.load(path)) for path in (tmp_path / name / "progress").glob("*.npz")}
        for name in ("whole", "a")
    )
    assert uninterrupted.keys() == resumed.keys()
    for name, arrays in uninterrupted.items():
        for key, values in arrays.items():
            np.testing.assert_array_equal(resumed[name][key], values)
