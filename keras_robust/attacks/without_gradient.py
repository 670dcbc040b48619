"""What becomes of an attack that finds no gradient."""

import contextvars
from contextlib import AbstractContextManager
from typing import Any

from keras_robust.backend.scope import scope

_names: contextvars.ContextVar[list[str] | None] = contextvars.ContextVar("names", default=None)


def standing_without_gradient() -> AbstractContextManager[list[str]]:
    """Inside, an attack that finds no gradient fails on its examples; elsewhere it raises.

    Gives a list that such attacks add their names to, each once. The members of an ensemble do so
    for themselves: those that need no gradient attack all the same.
    """
    return scope(_names, [])


def may_stand(attack: Any) -> bool:
    """Whether an attack that has found no gradient may go on, as one that has failed."""
    names, name = _names.get(), type(attack).__name__
    if names is not None and name not in names:
        names.append(name)
    return names is not None
