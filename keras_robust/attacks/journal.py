"""Notes of a running attack, to show its progress and to continue it after an interruption."""

from collections.abc import Mapping
from typing import Protocol

import numpy as np

from keras_robust.attacks.meter import Meter

Arrays = dict[str, np.ndarray]


class Store(Protocol):
    """Keeps arrays by name, each under its last value."""

    def read(self, name: str) -> Arrays | None:
        """The arrays that were written last under this name; `None` if there are none."""

    def write(self, name: str, arrays: Mapping[str, np.ndarray]) -> None:
        """Keeps the arrays in the place of what was written before."""


class Journal:
    """Shows which round of an attack begins, and saves after each round what it has found so far.

    An attack that finds its notes saved goes on after the last of them. Each attack inside of an
    ensemble has a journal of its own, `member`.

    Args:
        meter: shows how far the attack is. Defaults to `None`: nothing is shown.
        store: keeps the notes. Defaults to `None`: nothing is kept.
    """

    def __init__(self, meter: Meter | None = None, store: Store | None = None) -> None:
        self.meter, self.store = meter, store
        self._path: tuple[int, ...] = ()
        self._where: tuple[str, ...] = ()
        self._position = 0

    def member(self, number: int, where: str, position: int) -> "Journal":
        """The journal of an ensemble's attack.

        Args:
            number: int, the number of the attack in the ensemble.
            where: string, its name and number in words.
            position: int, how many rounds the attacks before it have.
        """
        member = Journal(self.meter, self.store)
        member._path = (*self._path, number)
        member._where = (*self._where, where)
        member._position = self._position + position
        return member

    def begin_round(self, index: int, num_rounds: int, num_examples: int) -> None:
        """To be called before a round is run on so many examples."""
        if self.meter is not None:
            where = list(self._where)
            if num_rounds > 1:
                where.append(f"round {index + 1}/{num_rounds}")
            place = ", ".join(where)
            self.meter.begin_round(self._position + index, self._path, place, num_examples)

    def read(self) -> Arrays:
        """Returns the arrays that were saved last, or an empty mapping."""
        found = None if self.store is None else self.store.read(self._name)
        return {} if found is None else found

    def write(self, **arrays: np.ndarray) -> None:
        """Saves what the attack has found so far, in place of the notes before."""
        if self.store is not None:
            self.store.write(self._name, arrays)

    @property
    def _name(self) -> str:
        return ".".join(map(str, self._path))
