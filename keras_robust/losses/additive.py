"""Addition of losses."""

from collections.abc import Callable
from typing import Any, ClassVar


class Additive:
    """Adds operators to losses: `a + b` is `Sum([a, b])`, and `0.5 * a` is `Sum([a], [0.5])`."""

    # `losses/sum.py` sets these, because `Sum` is itself `Additive` and cannot be imported here.
    added: ClassVar[Callable[[Any, Any], Any]]
    scaled: ClassVar[Callable[[Any, Any], Any]]
    # Makes `np.float64(0.5) * loss` call `__rmul__`.
    __array_ufunc__ = None

    def __add__(self, other: Any) -> Any:
        return Additive.added(self, other)

    def __radd__(self, other: Any) -> Any:
        # The built-in `sum(losses)` starts from 0.
        return self if isinstance(other, int) and other == 0 else Additive.added(other, self)

    def __mul__(self, factor: float) -> Any:
        return Additive.scaled(self, factor)

    def __rmul__(self, factor: float) -> Any:
        return Additive.scaled(self, factor)
