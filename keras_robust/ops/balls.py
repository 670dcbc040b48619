"""Norm balls around a batch of images: a random point, the steepest direction, the projection."""

import math
from collections.abc import Callable
from typing import Any

from keras import ops

from keras_robust import backend

# A length of an example that others are measured by counts as at least this share of its mean over
# the examples. An image that is all but black has no length to measure by: the ratio would outweigh
# all others, or be infinite. No image of MNIST, Fashion-MNIST or CIFAR-10 is that short.
LEAST_SHARE = 0.1
# A length to divide by, where both the length and the radius are 0.
_SMALLEST = 1e-30


def per_example(values: Any, like: Any) -> Any:
    """Shape `(batch_size,)` to `(batch_size, 1, ..., 1)`, to go with `like`."""
    return ops.reshape(values, (-1,) + (1,) * (len(like.shape) - 1))


def per_example_where(condition: Any, x: Any, otherwise: Any) -> Any:
    """`x` for the examples for which the condition holds, else the other."""
    return ops.where(per_example(condition, x), x, otherwise)


def maximum_norm(delta: Any) -> Any:
    """L-infinity norm per example."""
    return ops.max(ops.reshape(ops.abs(delta), (ops.shape(delta)[0], -1)), axis=1)


def euclidean_norm(delta: Any) -> Any:
    """L2 norm per example, scaled by the largest entry: squares neither under- nor overflow."""
    largest = maximum_norm(delta)
    safe = ops.where(largest > 0, largest, ops.ones_like(largest))
    scaled = ops.reshape(delta / per_example(safe, delta), (ops.shape(delta)[0], -1))
    return largest * ops.sqrt(ops.sum(ops.square(scaled), axis=1))


def steepest_direction(gradient: Any, norm: str) -> Any:
    """The point of the unit ball that has the largest inner product with `gradient`.

    `argmax_{||d|| <= 1} <d, g>`: sign(g) for `"linf"`, g / ||g||_2 for `"l2"`; 0 where g is 0.
    """
    if norm == "linf":
        return ops.sign(gradient)
    length = euclidean_norm(gradient)
    safe = ops.where(length > 0, length, ops.ones_like(length))
    return gradient / per_example(safe, gradient)


def steepest_step(gradient: Any, size: Any, norm: str) -> Any:
    """`argmax <d, g>` subject to `||d / size|| <= 1`.

    `size` is a number, or a tensor that broadcasts to `gradient`, one size for each value.
    """
    if not len(getattr(size, "shape", ())):
        return size * steepest_direction(gradient, norm)
    return size * steepest_direction(size * gradient, norm)


def projection(x: Any, epsilon: Any, norm: str, bounds: tuple[Any, Any]) -> Callable[[Any], Any]:
    """The projection to the ball of radius `epsilon` around `x`, then to `bounds`.

    For `"linf"` it is `argmin ||z - x_adv||` over the intersection of both, which is a box. For
    `"l2"` it is each projection once: the result lies in both, since clipping to an interval
    that contains `x` brings no coordinate further away from it. `bounds` are numbers, or tensors of
    the shape of `x`.
    """
    if norm == "linf":
        lower = ops.maximum(x - epsilon, bounds[0])
        upper = ops.minimum(x + epsilon, bounds[1])
        return lambda x_adv: ops.minimum(ops.maximum(x_adv, lower), upper)

    def project(x_adv: Any) -> Any:
        delta = x_adv - x
        length = euclidean_norm(delta)
        factor = epsilon / ops.maximum(ops.maximum(length, epsilon), _SMALLEST)
        return ops.clip(x + delta * per_example(factor, delta), *bounds)

    return project


def random_in_ball(x: Any, epsilon: Any, norm: str, seed: Any, bounds: tuple[Any, Any]) -> Any:
    """Draws uniformly from the ball of radius `epsilon` around each `x`.

    Values whose bounds, tensors, leave them no room are fixed: the ball has fewer dimensions.
    """
    shape = ops.shape(x)
    if norm == "linf":
        return x + backend.uniform(shape, seed, -epsilon, epsilon, x.dtype)
    draws = backend.normal(shape, backend.fold_in(seed, 0), x.dtype)
    dimensions: Any = math.prod(x.shape[1:])
    if len(getattr(bounds[0], "shape", ())):
        free = ops.cast(bounds[1] > bounds[0], x.dtype)
        draws = draws * free
        dimensions = ops.maximum(ops.sum(ops.reshape(free, (shape[0], -1)), axis=1), 1.0)
    direction = steepest_direction(draws, "l2")
    radius = backend.uniform((shape[0],), backend.fold_in(seed, 1), 0.0, 1.0, x.dtype)
    return x + epsilon * per_example(radius ** (1.0 / dimensions), x) * direction
