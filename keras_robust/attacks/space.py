"""Coordinates of images for masks and for radii and bounds per value."""

from typing import Any

import numpy as np
from keras import ops

from keras_robust.types import Images, Tensor


class Space:
    """Maps images to coordinates in which the attack's ball has a single radius.

    With a radius per value, the ball is `||delta / epsilon|| <= 1`. In the coordinates
    `z = x / epsilon`, it is the ball of radius 1. A value with a radius of 0, or where the mask is
    0, is fixed: its lower and upper bound are the value itself. Without such arrays, `z` is `x`.

    Args:
        attack: `kr.attacks.Attack`.
        x: tensor, shape `(batch_size, ...)`. The original images.
        mask: tensor of the shape of `x`, 0 where values must not change. Defaults to `None`: all
            values may change.

    Attributes:
        attack: the attack, with radius, step size and bounds in units of `z`. Bounds that differ
            between values are tensors of the shape of `x`.
        free: bool tensor of the shape of `x`, true where values may change; `None` if all may.
    """

    def __init__(self, attack: Any, x: Images, mask: Tensor = None) -> None:
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

    def inside(self, x: Images) -> Tensor:
        """Converts images, or tensors like them, to the attack's coordinates."""
        return x if self.scale is None else x / self.scale

    def outside(self, z: Tensor) -> Tensor:
        """Converts the attack's coordinates to images. Fixed values equal the original exactly."""
        x = z if self.scale is None else z * self.scale
        # `z` may be the tensor `self.x` itself. Fixed values must not have a gradient even then.
        return x if self.free is None else ops.where(self.free, x, ops.stop_gradient(self.x))

    def _is_plain(self, bounds: tuple[Tensor, Tensor]) -> bool:
        """Whether all values may change, within the same finite bounds and radius."""
        is_number = all(np.ndim(bound) == 0 and np.isfinite(bound) for bound in bounds)
        return is_number and self.free is None and self.scale is None

    def _bound(self, bound: Tensor) -> Tensor:
        bound = ops.broadcast_to(ops.cast(bound, self.x.dtype), ops.shape(self.x))
        return self.inside(bound)


def bounds_for(bounds: tuple[Tensor, Tensor], x: Images) -> tuple[Tensor, Tensor]:
    """Returns the bounds, with arrays cast to the dtype of `x`."""
    low, high = (ops.cast(bound, x.dtype) if np.ndim(bound) else bound for bound in bounds)
    return low, high


def _width(low: Tensor, high: Tensor, z: Tensor, free: Tensor) -> Tensor:
    """Returns the largest distance between finite bounds for each example.

    Without finite bounds, returns the range of the example's values. If the range is 0, returns the
    largest absolute value, or 1 if that is 0 too.
    """

    def largest(values: Tensor) -> Tensor:
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
