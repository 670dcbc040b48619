"""Progress and saved results of a running attack."""

from collections.abc import Mapping
from typing import Protocol

import numpy as np

from keras_robust.attacks.meter import Meter

Arrays = dict[str, np.ndarray]


class Store(Protocol):
    """Stores arrays under names. A name holds the arrays that were written last."""

    def read(self, name: str) -> Arrays | None:
        """Returns the arrays stored under a name, or `None` if there are none."""

    def write(self, name: str, arrays: Mapping[str, np.ndarray]) -> None:
        """Stores arrays under a name and replaces earlier ones."""


class Journal:
    """Shows the progress of an attack, and saves its results after each round.

    An attack whose results have been saved resumes after the last saved round. Each attack of an
    ensemble has its own journal; see `member`.

    Args:
        meter: `Meter` that shows the progress. Defaults to `None`: nothing is shown.
        store: `Store` that keeps the results. Defaults to `None`: nothing is saved.
    """

    def __init__(self, meter: Meter | None = None, store: Store | None = None) -> None:
        self.meter, self.store = meter, store
        self._path: tuple[int, ...] = ()
        self._where: tuple[str, ...] = ()
        self._position = 0

    def member(self, number: int, where: str, position: int) -> "Journal":
        """Returns the journal of one attack of an ensemble.

        Args:
            number: int. Index of the attack in the ensemble.
            where: string. Name and number of the attack, to be shown.
            position: int. Number of rounds of the attacks before it.
        """
        member = Journal(self.meter, self.store)
        member._path = (*self._path, number)
        member._where = (*self._where, where)
        member._position = self._position + position
        return member

    def begin_round(self, index: int, num_rounds: int, num_examples: int) -> None:
        """Tells the meter that round `index` starts on `num_examples` examples."""
        if self.meter is not None:
            where = list(self._where)
            if num_rounds > 1:
                where.append(f"round {index + 1}/{num_rounds}")
            place = ", ".join(where)
            self.meter.begin_round(self._position + index, self._path, place, num_examples)

    def read(self) -> Arrays:
        """Returns the arrays saved last, or an empty dict."""
        found = None if self.store is None else self.store.read(self._name)
        return {} if found is None else found

    def write(self, **arrays: np.ndarray) -> None:
        """Saves the results so far and replaces earlier ones."""
        if self.store is not None:
            self.store.write(self._name, arrays)

    @property
    def _name(self) -> str:
        return ".".join(map(str, self._path))
