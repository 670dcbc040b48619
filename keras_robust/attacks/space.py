"""Where an attack may move an image, and in which units."""

from typing import Any

import numpy as np
from keras import ops


class Space:
    """The images that an attack may reach from `x`, in coordinates in which it is simple.

    With a radius for each value the ball is `||delta / epsilon|| <= 1`: in the coordinates
    `z = x / epsilon` it is the ball of radius 1. A value with a radius of 0, or outside of the
    mask, is fixed: its lower and upper bound are the value itself. Without such arrays `z` is `x`.

    Args:
        attack: `kr.attacks.Attack`.
        x: tensor, shape `(batch_size, ...)`, the original images.
        mask: tensor of the shape of `x`, 0 where it must not change. Defaults to `None`: all may.

    Attributes:
        attack: the attack, whose radius, step and bounds are in units of `z`. Bounds that are not
            the same for all values are tensors of the shape of `x`.
        free: bool tensor of the shape of `x`, what may change; `None` if all may.
    """

    def __init__(self, attack: Any, x: Any, mask: Any = None) -> None:
        self.x, self.attack = x, attack
        self.free = None if mask is None else ops.cast(mask, "bool")
        self.scale: Any = None
        changes: dict[str, Any] = {}
        epsilon: Any = getattr(attack, "epsilon", None)
        if np.ndim(epsilon):
            epsilon = ops.cast(epsilon, x.dtype)
            is_positive = ops.broadcast_to(epsilon > 0, ops.shape(x))
            self.free = (
                is_positive if self.free is None else ops.logical_and(is_positive, self.free)
            )
            self.scale = ops.where(epsilon > 0, epsilon, ops.ones_like(epsilon))
            changes["epsilon"] = 1.0
            if getattr(attack, "step_size", None) is not None:
                changes["step_size"] = attack.step_size / self.scale
        if not self._is_plain(attack.bounds):
            low, high = (self._bound(bound) for bound in attack.bounds)
            changes["_width"] = _width(low, high, self.inside(x), self.free)
            if self.free is not None:
                low, high = (ops.where(self.free, bound, self.inside(x)) for bound in (low, high))
            changes["bounds"] = low, high
        if changes:
            self.attack = attack.changed(**changes)

    def inside(self, x: Any) -> Any:
        """Images, or the tensor, in the attack's coordinates."""
        return x if self.scale is None else x / self.scale

    def outside(self, z: Any) -> Any:
        """The image at a point; a fixed value is the original one, bit for bit."""
        x = z if self.scale is None else z * self.scale
        # `z` may be the very tensor `self.x`: a fixed value has no gradient even so.
        return x if self.free is None else ops.where(self.free, x, ops.stop_gradient(self.x))

    def _is_plain(self, bounds: tuple[Any, Any]) -> bool:
        """Whether all values have the same finite bounds, and may be moved."""
        is_number = all(np.ndim(bound) == 0 and np.isfinite(bound) for bound in bounds)
        return is_number and self.free is None and self.scale is None

    def _bound(self, bound: Any) -> Any:
        bound = ops.broadcast_to(ops.cast(bound, self.x.dtype), ops.shape(self.x))
        return self.inside(bound)


def bounds_for(bounds: tuple[Any, Any], x: Any) -> tuple[Any, Any]:
    """The bounds with arrays in the dtype of `x`."""
    low, high = (ops.cast(bound, x.dtype) if np.ndim(bound) else bound for bound in bounds)
    return low, high


def _width(low: Any, high: Any, z: Any, free: Any) -> Any:
    """The largest distance of finite bounds; else the range of the values, else their size."""

    def largest(values: Any) -> Any:
        return ops.max(ops.reshape(values, (ops.shape(z)[0], -1)), axis=1)

    width = high - low
    counted = ops.isfinite(width) if free is None else ops.logical_and(ops.isfinite(width), free)
    candidates = (
        largest(ops.where(counted, width, ops.zeros_like(width))),
        largest(z) + largest(-z),
        largest(ops.abs(z)),
    )
    result = ops.ones_like(candidates[0])
    for candidate in reversed(candidates):
        result = ops.where(candidate > 0, candidate, result)
    return result
