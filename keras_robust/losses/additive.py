"""Addition of losses."""

from typing import Any


class Additive:
    """What all losses here share: `a + b` is `Sum([a, b])`, and `sum(losses)` works too."""

    def __add__(self, other: Any) -> Any:
        from keras_robust.losses.sum import added

        return added(self, other)

    def __radd__(self, other: Any) -> Any:
        from keras_robust.losses.sum import added

        return self if isinstance(other, int) and other == 0 else added(other, self)
