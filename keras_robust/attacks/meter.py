"""Progress display of a running attack, with an estimate of the remaining time."""

import shutil
import sys
import time
from collections.abc import Sequence
from typing import NamedTuple

# Assumed cost of a gradient in forward passes, until both have been timed.
_GRADIENT_COST = 3.0
_BAR_WIDTH = 16
# Seconds between two updates: of a line that is overwritten, of appended lines, with `verbose=2`.
_OVERWRITTEN, _APPENDED, _RARE = 0.1, 10.0, 60.0


class Cost(NamedTuple):
    """Largest number of model passes that a round takes for each example.

    Args:
        uses_gradient: bool. Whether the passes compute gradients. Otherwise they are forward
            passes.
        passes: int. Number of passes.
    """

    uses_gradient: bool
    passes: int


class _Round(NamedTuple):
    cost: Cost
    num_examples: int
    is_first: bool  # First round of its attack, which may include compilation.
    began: float


class Meter:
    """Shows which round of an attack is running, and estimates the remaining time.

    The estimate assumes that no further example of the current batch is fooled. It multiplies the
    passes of the remaining rounds by the number of examples that are not fooled yet and by the time
    per pass and example of the round that was timed last. Gradients and forward passes are timed
    separately. The first round of an attack may include compilation, so its time is used only while
    no other is known. Each later batch is assumed to take the mean time of the finished batches, or
    the estimated time of the current batch until one is finished.

    Args:
        costs: sequence of `Cost`, one for each round of a batch.
        num_batches: int. Number of batches. Defaults to `1`.
        verbose: int. 0 shows nothing. 1 shows a line that is overwritten (on a terminal or in a
            notebook), or else appends a line every 10 seconds. 2 appends a line every minute.
            Defaults to `1`.
    """

    def __init__(self, costs: Sequence[Cost], num_batches: int = 1, verbose: int = 1) -> None:
        self._costs, self._num_batches, self._verbose = costs, num_batches, verbose
        is_terminal = getattr(sys.stdout, "isatty", bool)()
        self._overwrites = verbose == 1 and (is_terminal or "ipykernel" in sys.modules)
        self._interval = {1: _OVERWRITTEN if self._overwrites else _APPENDED}.get(verbose, _RARE)
        self._began = self._batch_began = time.monotonic()
        self._shown, self._longest = -float("inf"), 0
        self._batch, self._batch_size = -1, 0
        # Position of the first round that was run in this batch. It is not 0 in a resumed batch.
        self._first_position: int | None = None
        self._round: _Round | None = None
        self._known: set[tuple[int, ...]] = set()
        self._pass_times: dict[tuple[bool, bool], float] = {}
        self._durations: list[float] = []

    def begin_batch(self, batch_size: int) -> None:
        """Must be called before each batch."""
        self._batch, self._batch_size = self._batch + 1, batch_size
        self._batch_began, self._first_position = time.monotonic(), None

    def begin_round(
        self, position: int, path: tuple[int, ...], where: str, num_examples: int
    ) -> None:
        """Must be called before each round. Shows the round if an update is due.

        Args:
            position: int. Index of the round among all rounds of the batch.
            path: tuple of ints. Indices that lead to the attack through nested ensembles.
            where: string. Names the attack and the round, to be shown.
            num_examples: int. Number of examples that the round attacks.
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
            remaining = self._remaining(now, position, num_examples)
            self._show(now - self._began, remaining, where, num_examples)

    def end_batch(self) -> None:
        """Must be called after each batch."""
        now = time.monotonic()
        self._end_round(now)
        # The duration of a batch that was loaded from disk or resumed is not representative.
        if self._first_position == 0:
            self._durations.append(now - self._batch_began)

    def close(self, num_robust: int, num_examples: int) -> None:
        """Shows the total time and the number of robust examples."""
        if self._verbose:
            result = f"{num_robust} of {num_examples} images are robust"
            elapsed = clock(time.monotonic() - self._began)
            self._print(f"{_bar(1.0)} {elapsed}: {result}", is_last=True)

    def _end_round(self, now: float) -> None:
        if self._round is not None:
            cost, num_examples, is_first, began = self._round
            pass_time = (now - began) / (cost.passes * num_examples)
            self._pass_times[cost.uses_gradient, is_first] = pass_time
        self._round = None

    def _remaining(self, now: float, position: int, num_examples: int) -> float | None:
        """Estimates the seconds until the end, or returns `None` if no round has been timed."""
        if not self._pass_times:
            return None
        left = self._seconds(position) * num_examples
        if self._durations:
            per_batch = sum(self._durations) / len(self._durations)
        elif self._first_position == 0:
            per_batch = now - self._batch_began + left
        else:
            per_batch = self._seconds(0) * self._batch_size
        return left + per_batch * (self._num_batches - self._batch - 1)

    def _seconds(self, position: int) -> float:
        """Returns the seconds per example of all rounds of a batch from `position` on."""
        return sum(
            cost.passes * self._pass_time(cost.uses_gradient) for cost in self._costs[position:]
        )

    def _pass_time(self, uses_gradient: bool) -> float:
        """Returns the seconds per pass and example."""
        factor = _GRADIENT_COST if uses_gradient else 1 / _GRADIENT_COST
        for is_first in (False, True):
            for kind, factor_of_kind in ((uses_gradient, 1.0), (not uses_gradient, factor)):
                if (kind, is_first) in self._pass_times:
                    return factor_of_kind * self._pass_times[kind, is_first]
        raise AssertionError("no round has been timed")

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
    """Formats a duration as hours, minutes and seconds."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"


def _bar(share: float) -> str:
    done = int(share * _BAR_WIDTH)
    return f"[{'=' * done}{'.' * (_BAR_WIDTH - done)}]"
