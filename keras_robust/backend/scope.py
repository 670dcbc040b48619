"""Temporary values of context variables."""

import contextlib
import contextvars
from collections.abc import Iterator
from typing import TypeVar

T = TypeVar("T")


@contextlib.contextmanager
def scope(variable: contextvars.ContextVar[T | None], value: T) -> Iterator[T]:
    """Sets `variable` to `value`, yields it, and restores the variable on exit."""
    token = variable.set(value)
    try:
        yield value
    finally:
        variable.reset(token)
