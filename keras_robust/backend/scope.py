"""Setting a context variable for a while."""

import contextlib
import contextvars
from collections.abc import Iterator
from typing import TypeVar

T = TypeVar("T")


@contextlib.contextmanager
def scope(variable: contextvars.ContextVar[T | None], value: T) -> Iterator[T]:
    """Inside, the variable is `value`, which is given back; what it was before, outside."""
    token = variable.set(value)
    try:
        yield value
    finally:
        variable.reset(token)
