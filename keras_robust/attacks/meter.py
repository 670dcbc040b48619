"""How far an attack is, and how long it will still take."""

import shutil
import sys
import time
from collections.abc import Sequence
from typing import NamedTuple

# What a gradient costs, in passes forward, until both have been timed.
_GRADIENT = 3.0
_BAR_WIDTH = 16
# Seconds from one line to the next: where it is overwritten, where it is not, with `verbose=2`.
_OVERWRITTEN, _APPENDED, _RARE = 0.1, 10.0, 60.0


class Cost(NamedTuple):
    """The largest number of passes that a round takes for each example.

    Args:
        uses_gradient: bool. Whether the passes are gradients, rather than passes forward.
        passes: int. How many there are.
    """

    uses_gradient: bool
    passes: int


class _Round(NamedTuple):
    cost: Cost
    num_examples: int
    is_first: bool  # Of its attack: it may have to be compiled.
    began: float


class Meter:
    """A line that says which round of an attack runs, and how long all of it will still take.

    What is left of a batch is estimated as if no other example were fooled: the passes of the
    rounds to come, on the examples that still stand, at the price of the round that was timed last.
    Gradients and passes forward have a price each. A round that may have been compiled has one only
    as long as there is no other. Batches to come are taken to last as long as those that are done
    have on average, and until one is done as long as the first.

    Args:
        costs: what each round of a batch costs.
        num_batches: int.
        verbose: int. 1 shows a line that is overwritten (on a terminal or in a notebook), or a line
            every 10 seconds; 2 a line every minute; 0 nothing.
    """

    def __init__(self, costs: Sequence[Cost], num_batches: int = 1, verbose: int = 1) -> None:
        self._costs, self._num_batches, self._verbose = costs, num_batches, verbose
        is_terminal = getattr(sys.stdout, "isatty", bool)()
        self._overwrites = verbose == 1 and (is_terminal or "ipykernel" in sys.modules)
        self._interval = {1: _OVERWRITTEN if self._overwrites else _APPENDED}.get(verbose, _RARE)
        self._began = self._batch_began = time.monotonic()
        self._shown, self._longest = -float("inf"), 0
        self._batch, self._batch_size = -1, 0
        # The first round that was run in this batch: another than 0 where it was continued.
        self._first_position: int | None = None
        self._round: _Round | None = None
        self._known: set[tuple[int, ...]] = set()
        self._prices: dict[tuple[bool, bool], float] = {}
        self._durations: list[float] = []

    def begin_batch(self, batch_size: int) -> None:
        """To be called before each batch."""
        self._batch, self._batch_size = self._batch + 1, batch_size
        self._batch_began, self._first_position = time.monotonic(), None

    def begin_round(
        self, position: int, path: tuple[int, ...], where: str, num_examples: int
    ) -> None:
        """To be called before each round that is run.

        Args:
            position: int, the number of the round among all of the batch.
            path: the numbers that lead to the attack, from one ensemble to the next.
            where: string, the attack and the round in words.
            num_examples: int, how many examples it is run on.
        """
        if not self._verbose:
            return
        now = time.monotonic()
        self._end_round(now)
        if self._first_position is None:
            self._first_position = position
        cost, is_first = self._costs[position], path not in self._known
        self._round = _Round(cost, num_examples, is_first, now)
        self._known.add(path)
        if now - self._shown >= self._interval:
            self._shown = now
            left = self._left(now, position, num_examples)
            self._show(now - self._began, left, where, num_examples)

    def end_batch(self) -> None:
        """To be called after each batch."""
        now = time.monotonic()
        self._end_round(now)
        # One that was found on the disk, or continued from there, says nothing of the others.
        if self._first_position == 0:
            self._durations.append(now - self._batch_began)

    def close(self, num_robust: int, num_examples: int) -> None:
        """Shows how long it took, and how many of the examples it has not fooled."""
        if self._verbose:
            result = f"{num_robust} of {num_examples} images are robust"
            elapsed = clock(time.monotonic() - self._began)
            self._print(f"{_bar(1.0)} {elapsed}: {result}", is_last=True)

    def _end_round(self, now: float) -> None:
        if self._round is not None:
            cost, num_examples, is_first, began = self._round
            price = (now - began) / (cost.passes * num_examples)
            self._prices[cost.uses_gradient, is_first] = price
        self._round = None

    def _left(self, now: float, position: int, num_examples: int) -> float | None:
        """How many seconds all rounds to come will take; `None` if nothing is known."""
        if not self._prices:
            return None
        left = self._seconds(position) * num_examples
        if self._durations:
            each = sum(self._durations) / len(self._durations)
        elif self._first_position == 0:
            each = now - self._batch_began + left
        else:
            each = self._seconds(0) * self._batch_size
        return left + each * (self._num_batches - self._batch - 1)

    def _seconds(self, position: int) -> float:
        """What all rounds of a batch cost for each example, from this one on."""
        return sum(cost.passes * self._price(cost.uses_gradient) for cost in self._costs[position:])

    def _price(self, uses_gradient: bool) -> float:
        """Seconds for a pass and an example."""
        factor = _GRADIENT if uses_gradient else 1 / _GRADIENT
        for is_first in (False, True):
            for kind, factor_of_kind in ((uses_gradient, 1.0), (not uses_gradient, factor)):
                if (kind, is_first) in self._prices:
                    return factor_of_kind * self._prices[kind, is_first]
        raise AssertionError("nothing has been timed")

    def _show(self, elapsed: float, left: float | None, where: str, num_examples: int) -> None:
        bar = _bar(0.0 if left is None else elapsed / (elapsed + left))
        remaining = "" if left is None else f", about {clock(left)} left"
        parts = [f"batch {self._batch + 1}/{self._num_batches}"] if self._num_batches > 1 else []
        parts += [where] if where else []
        place = f"{', '.join(parts)} on {num_examples} images".lstrip()
        self._print(f"{bar} {clock(elapsed)}{remaining}: {place}")

    def _print(self, line: str, is_last: bool = False) -> None:
        if not self._overwrites:
            print(line, flush=True)
            return
        line = line[: shutil.get_terminal_size((100, 24)).columns - 1]
        print(f"\r{line:{self._longest}}", end="\n" if is_last else "", flush=True)
        self._longest = len(line)


def clock(seconds: float) -> str:
    """Hours, minutes and seconds."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"


def _bar(share: float) -> str:
    done = int(share * _BAR_WIDTH)
    return f"[{'=' * done}{'.' * (_BAR_WIDTH - done)}]"
