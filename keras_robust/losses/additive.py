"""Addition of losses."""

from collections.abc import Callable
from typing import Any, ClassVar


class Additive:
    """What all losses here share: `a + b` is `Sum([a, b])`, `0.5 * a` is `Sum([a], [0.5])`."""

    # `losses/sum.py` sets them: a sum is a loss that can be added itself.
    added: ClassVar[Callable[[Any, Any], Any]]
    scaled: ClassVar[Callable[[Any, Any], Any]]
    # NumPy's numbers leave the product to `__rmul__`.
    __array_ufunc__ = None

    def __add__(self, other: Any) -> Any:
        return Additive.added(self, other)

    def __radd__(self, other: Any) -> Any:
        # `sum(losses)` begins with 0.
        return self if isinstance(other, int) and other == 0 else Additive.added(other, self)

    def __mul__(self, factor: Any) -> Any:
        return Additive.scaled(self, factor)

    def __rmul__(self, factor: Any) -> Any:
        return Additive.scaled(self, factor)
