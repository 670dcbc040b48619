"""The remaining time, from what rounds have taken so far."""

import re
import sys
import types

import pytest

import keras_robust as kr
from keras_robust.attacks.meter import Cost, Meter, clock

GRADIENTS, QUERIES = Cost(True, 100), Cost(False, 300)


@pytest.fixture
def time(monkeypatch):
    """A clock that is set by hand."""
    time = types.SimpleNamespace(now=1000.0)
    time.monotonic = lambda: time.now
    monkeypatch.setattr("keras_robust.attacks.meter.time", time)
    return time


@pytest.fixture
def run(time, capsys):
    """Runs a round of so many seconds; returns how many seconds are said to be left before it."""

    def run(meter, position, seconds, num_examples, path=()):
        meter.begin_round(position, path, "here", num_examples)
        time.now += seconds
        shown = capsys.readouterr().out
        found = re.search(r"about (\d+):(\d\d):(\d\d) left", shown)
        if found is None:
            assert shown.startswith("[................] ")
            return None
        hours, minutes, seconds = map(int, found.groups())
        return 3600 * hours + 60 * minutes + seconds

    return run


def test_one_batch(run):
    meter = Meter([GRADIENTS] * 4 + [QUERIES] * 3)
    meter.begin_batch(8)
    # Nothing is known.
    assert run(meter, 0, 90, 8) is None
    # A second for a gradient, though some of it may be compiling; a third of it for a query.
    assert run(meter, 1, 80, 8) == pytest.approx(90 * 3 + 90 * 3, abs=1)
    # The second round has not been compiled: 80 s, of 8 images.
    assert run(meter, 2, 40, 4) == pytest.approx((80 * 2 + 80 * 3) / 2, abs=1)
    # A round is left out where nothing stands; 40 s for 4 images is the same price.
    assert run(meter, 4, 100, 2, path=(1,)) == pytest.approx(80 * 3 / 4, abs=1)
    # The first round of another attack may have been compiled: its price does not count yet.
    assert run(meter, 5, 60, 2, path=(1,)) == pytest.approx(80 * 2 / 4, abs=1)
    # 60 s for 300 queries and 2 images.
    assert run(meter, 6, 60, 2, path=(1,)) == pytest.approx(60, abs=1)


def test_batches_to_come(run, time):
    meter = Meter([GRADIENTS] * 2, num_batches=4)
    meter.begin_batch(8)
    assert run(meter, 0, 50, 8) is None
    # 50 s, this batch's second round, and three batches like it.
    assert run(meter, 1, 50, 8) == pytest.approx(50 + 3 * 100, abs=1)
    meter.end_batch()
    meter.begin_batch(8)
    assert run(meter, 0, 20, 8) == pytest.approx(100 + 2 * 100, abs=1)
    meter.end_batch()  # All are fooled by the first round.
    meter.begin_batch(8)
    # Two batches have taken 100 and 20 s.
    assert run(meter, 0, 20, 8) == pytest.approx(2 * 20 + 60, abs=2)


def test_what_was_done_before_an_interruption(run, time):
    meter = Meter([GRADIENTS] * 4, num_batches=4)
    meter.begin_batch(8)
    meter.end_batch()  # Found on the disk.
    meter.begin_batch(8)
    assert run(meter, 2, 50, 4) is None
    # A round for 4 images takes 50 s, so one for 8 takes 100.
    assert run(meter, 3, 50, 4) == pytest.approx(50 + 2 * 4 * 100, abs=1)
    meter.end_batch()
    meter.begin_batch(8)
    # Half a batch says nothing of how long one takes.
    assert run(meter, 0, 100, 8) == pytest.approx(400 + 400, abs=1)


@pytest.mark.parametrize(("verbose", "num_lines"), [(0, 0), (1, 13), (2, 3)])
def test_how_many_lines(time, capsys, verbose, num_lines):
    meter = Meter([QUERIES] * 120, verbose=verbose)
    meter.begin_batch(8)
    for position in range(120):
        meter.begin_round(position, (), f"round {position + 1}/120", 8)
        time.now += 1
    meter.end_batch()
    meter.close(3, 8)
    shown = capsys.readouterr().out
    assert "\r" not in shown
    lines = shown.splitlines()
    assert len(lines) == num_lines
    if lines:
        assert lines[0].endswith("] 0:00:00: round 1/120 on 8 images")
        assert lines[-1] == "[================] 0:02:00: 3 of 8 images are robust"


def test_a_line_of_a_terminal_is_overwritten(time, capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "60")
    meter = Meter([QUERIES] * 3, num_batches=2)
    meter.begin_batch(8)
    for position in range(3):
        meter.begin_round(position, (), f"{'x' * (50 - 20 * position)}", 8)
        time.now += 1
    meter.close(3, 8)
    shown = capsys.readouterr().out
    assert shown.count("\n") == 1
    lines = shown.split("\r")[1:]
    assert len(lines) == 4
    assert [len(line.rstrip("\n")) for line in lines] == [59, 59, 59, 59]
    assert lines[-1].strip().endswith("3 of 8 images are robust")


def test_ascii_alone_is_shown(time, capsys):
    meter = Meter([QUERIES] * 2)
    meter.begin_batch(1)
    meter.begin_round(0, (), "a", 1)
    meter.close(0, 1)
    assert capsys.readouterr().out.isascii()


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0, "0:00:00"), (59.6, "0:01:00"), (3599, "0:59:59"), (90061, "25:01:01")],
)
def test_clock(seconds, shown):
    assert clock(seconds) == shown


@pytest.mark.parametrize(
    ("attack", "costs"),
    [
        (kr.attacks.FGSM(0.1), [(True, 1)]),
        (kr.attacks.PGD(0.1, num_steps=7, num_restarts=2), [(True, 7)] * 2),
        (kr.attacks.PGD(0.1, num_steps=7, num_samples=3), [(True, 21)]),
        (kr.attacks.MultiTargeted(0.1, num_steps=7), [(True, 7)] * 4),
        (kr.attacks.FAB(num_steps=7, num_targets=3), [(True, 7)] * 3),
        (kr.attacks.DeepFool(num_steps=6), [(True, 3 * 4)] * 2),
        (kr.attacks.CarliniWagnerL2(num_steps=40, binary_search_steps=1), [(True, 10)] * 4),
        (kr.attacks.GaussianNoise(0.1), [(False, 1)]),
        (kr.attacks.Square(0.1, num_queries=20), [(False, n) for n in (12, 5, 6, 5)]),
        # 5 rounds may look for a first image; then 100, 140 and 20 of what is left of 350.
        (
            kr.attacks.HopSkipJump(num_queries=350),
            [(False, n) for n in (25, 25, 25, 25, 25, 121, 161, 41)],
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_rounds_cost(attack, costs):
    found = attack.round_costs(5)
    if isinstance(attack, kr.attacks.CarliniWagnerL2):
        *found, approach = found
        assert approach == (False, 8)
    assert found == costs


def test_what_the_rounds_of_ensembles_cost():
    parts = [kr.attacks.FGSM(0.1), kr.attacks.PGD(0.1, num_steps=7, num_restarts=2)]
    nested = kr.attacks.Ensemble([kr.attacks.Ensemble(parts), parts[0]])
    assert nested.round_costs(5) == [(True, 1), (True, 7), (True, 7), (True, 1)]
    costs = kr.attacks.AutoAttack(0.1).round_costs(1000)
    gradients = [cost.passes for cost in costs if cost.uses_gradient]
    queries = [cost.passes for cost in costs if not cost.uses_gradient]
    assert gradients == [100] * 19
    assert sum(queries) == 5000 + 2 * len(queries)
    assert max(queries) == 252


def test_steps_of_an_attack_of_ones_own_may_be_anything():
    class Own(kr.attacks.Attack):
        def __init__(self, num_steps):
            super().__init__()
            self.num_steps = num_steps

    assert [Own(steps).round_costs(2) for steps in (3, 0, [1, 2], None)] == [
        [(True, passes)] for passes in (3, 1, 1, 1)
    ]
