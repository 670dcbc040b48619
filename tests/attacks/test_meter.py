"""Progress lines, and estimates of the remaining time from the rounds so far."""

import re
import sys
import types

import pytest

import keras_robust as kr
from keras_robust.attacks.meter import Cost, Meter, clock

GRADIENTS, QUERIES = Cost(True, 100), Cost(False, 300)


@pytest.fixture
def time(monkeypatch):
    """Replaces the clock by one that the test sets."""
    time = types.SimpleNamespace(now=1000.0)
    time.monotonic = lambda: time.now
    monkeypatch.setattr("keras_robust.attacks.meter.time", time)
    return time


@pytest.fixture
def run(time, capsys):
    """Runs a round of `seconds`. Returns the remaining time that was shown before it."""

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


def test_remaining_time_of_one_batch(run):
    meter = Meter([GRADIENTS] * 4 + [QUERIES] * 3)
    meter.begin_batch(8)
    # No round has been timed.
    assert run(meter, 0, 90, 8) is None
    # 0.9 s per gradient, although compiling may be included, and a third of it per query.
    assert run(meter, 1, 80, 8) == pytest.approx(90 * 3 + 90 * 3, abs=1)
    # The second round needed no compiling: 80 s for 8 images.
    assert run(meter, 2, 40, 4) == pytest.approx((80 * 2 + 80 * 3) / 2, abs=1)
    # The round at position 3 was skipped. 40 s for 4 images is the same cost per image.
    assert run(meter, 4, 100, 2, path=(1,)) == pytest.approx(80 * 3 / 4, abs=1)
    # The first round of another attack may include compiling, so it does not count yet.
    assert run(meter, 5, 60, 2, path=(1,)) == pytest.approx(80 * 2 / 4, abs=1)
    # 60 s for 300 queries and 2 images.
    assert run(meter, 6, 60, 2, path=(1,)) == pytest.approx(60, abs=1)


def test_remaining_time_of_several_batches(run, time):
    meter = Meter([GRADIENTS] * 2, num_batches=4)
    meter.begin_batch(8)
    assert run(meter, 0, 50, 8) is None
    # 50 s for the second round of this batch, and three more batches.
    assert run(meter, 1, 50, 8) == pytest.approx(50 + 3 * 100, abs=1)
    meter.end_batch()
    meter.begin_batch(8)
    assert run(meter, 0, 20, 8) == pytest.approx(100 + 2 * 100, abs=1)
    meter.end_batch()  # The first round has fooled all images.
    meter.begin_batch(8)
    # Two batches have taken 100 and 20 s.
    assert run(meter, 0, 20, 8) == pytest.approx(2 * 20 + 60, abs=2)


def test_remaining_time_after_an_interruption(run, time):
    meter = Meter([GRADIENTS] * 4, num_batches=4)
    meter.begin_batch(8)
    meter.end_batch()  # Loaded from the disk.
    meter.begin_batch(8)
    assert run(meter, 2, 50, 4) is None
    # A round for 4 images takes 50 s, so one for 8 takes 100.
    assert run(meter, 3, 50, 4) == pytest.approx(50 + 2 * 4 * 100, abs=1)
    meter.end_batch()
    meter.begin_batch(8)
    # The batch that was resumed halfway does not count.
    assert run(meter, 0, 100, 8) == pytest.approx(400 + 400, abs=1)


@pytest.mark.parametrize(("verbose", "num_lines"), [(0, 0), (1, 13), (2, 3)])
def test_number_of_lines(time, capsys, verbose, num_lines):
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


def test_a_terminal_line_is_overwritten(time, capsys, monkeypatch):
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


def test_only_ascii_is_printed(time, capsys):
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
        # Up to 5 rounds look for a first image. The others take 100, 140 and 20 queries.
        (
            kr.attacks.HopSkipJump(num_queries=350),
            [(False, n) for n in (25, 25, 25, 25, 25, 121, 161, 41)],
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_round_costs(attack, costs):
    found = attack.round_costs(5)
    if isinstance(attack, kr.attacks.CarliniWagnerL2):
        *found, bisection = found
        assert bisection == (False, 8)
    assert found == costs


def test_round_costs_of_ensembles():
    parts = [kr.attacks.FGSM(0.1), kr.attacks.PGD(0.1, num_steps=7, num_restarts=2)]
    nested = kr.attacks.Ensemble([kr.attacks.Ensemble(parts), parts[0]])
    assert nested.round_costs(5) == [(True, 1), (True, 7), (True, 7), (True, 1)]
    costs = kr.attacks.AutoAttack(0.1).round_costs(1000)
    gradients = [cost.passes for cost in costs if cost.uses_gradient]
    queries = [cost.passes for cost in costs if not cost.uses_gradient]
    assert gradients == [100] * 19
    assert sum(queries) == 5000 + 2 * len(queries)
    assert max(queries) == 252


def test_round_costs_of_a_custom_attack_with_any_num_steps():
    class Custom(kr.attacks.Attack):
        def __init__(self, num_steps):
            super().__init__()
            self.num_steps = num_steps

    assert [Custom(steps).round_costs(2) for steps in (3, 0, [1, 2], None)] == [
        [(True, passes)] for passes in (3, 1, 1, 1)
    ]
