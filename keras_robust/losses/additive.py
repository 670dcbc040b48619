"""Addition of losses."""

from collections.abc import Callable
from typing import Any, ClassVar


class Additive:
    """What all losses here share: `a + b` is `Sum([a, b])`, and `sum(losses)` works too."""

    # `losses/sum.py` sets it: a sum is a loss that can be added itself.
    added: ClassVar[Callable[[Any, Any], Any]]

    def __add__(self, other: Any) -> Any:
        return Additive.added(self, other)

    def __radd__(self, other: Any) -> Any:
        return self if isinstance(other, int) and other == 0 else Additive.added(other, self)
