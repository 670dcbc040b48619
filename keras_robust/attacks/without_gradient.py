"""What becomes of an attack that finds no gradient."""

import contextlib
import contextvars
from collections.abc import Iterator
from typing import Any

_names: contextvars.ContextVar[list[str] | None] = contextvars.ContextVar("names", default=None)


@contextlib.contextmanager
def standing_without_gradient() -> Iterator[list[str]]:
    """Inside, an attack that finds no gradient fails on its examples; elsewhere it raises.

    Gives a list that such attacks add their names to, each once. The members of an ensemble do so
    for themselves: those that need no gradient attack all the same.
    """
    names: list[str] = []
    token = _names.set(names)
    try:
        yield names
    finally:
        _names.reset(token)


def may_stand(attack: Any) -> bool:
    """Whether an attack that has found no gradient may go on, as one that has failed."""
    names, name = _names.get(), type(attack).__name__
    if names is not None and name not in names:
        names.append(name)
    return names is not None
