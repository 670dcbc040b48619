"""Norm balls around a batch of images: random points, steepest directions, projections."""

import math
from collections.abc import Callable
from typing import Any

from keras import ops

from keras_robust import backend
from keras_robust.ops.precision import working_dtype
from keras_robust.types import Seed, Tensor

# Norms of examples that serve as denominators are raised to at least this share of their mean over
# the examples. The norm of a nearly black image is close to zero, so a ratio to it would dominate
# the mean or be infinite. No image of MNIST, Fashion-MNIST or CIFAR-10 has so small a norm.
LEAST_SHARE = 0.1
# Divisor where a length, and possibly the radius, is 0.
_SMALLEST = 1e-30
# A change of a value by less than this share of the radius may be a rounding error.
NEGLIGIBLE = 1e-6
# The number of halvings in `bisected`, after which the interval is below each dtype's rounding.
_NUM_HALVINGS = {"float32": 30, "float64": 60}
# The projection in L1: its error as a share of the radius, the relative spacing of numbers in each
# dtype, and the maximum number of steps.
_PRECISION, _ROUNDING = {"float32": 1e-6, "float64": 1e-14}, {"float32": 1e-7, "float64": 2e-16}
_MAX_STEPS = 200


def per_example(values: Tensor, like: Tensor) -> Tensor:
    """Reshapes `(batch_size,)` to `(batch_size, 1, ..., 1)`, to broadcast with `like`."""
    return ops.reshape(values, (-1,) + (1,) * (len(like.shape) - 1))


def per_example_where(condition: Tensor, x: Tensor, otherwise: Tensor) -> Tensor:
    """Selects `x` for the examples that meet the condition, else `otherwise`."""
    return ops.where(per_example(condition, x), x, otherwise)


def maximum_norm(delta: Tensor) -> Tensor:
    """Computes the L-infinity norm of each example."""
    return ops.max(ops.reshape(ops.abs(delta), (ops.shape(delta)[0], -1)), axis=1)


def euclidean_norm(delta: Tensor) -> Tensor:
    """Computes the L2 norm of each example.

    Values are scaled by the largest entry, so that their squares neither underflow nor overflow.
    """
    largest = maximum_norm(delta)
    safe = ops.where(largest > 0, largest, ops.ones_like(largest))
    scaled = ops.reshape(delta / per_example(safe, delta), (ops.shape(delta)[0], -1))
    return largest * ops.sqrt(ops.sum(ops.square(scaled), axis=1))


def absolute_norm(delta: Tensor) -> Tensor:
    """Computes the L1 norm of each example."""
    return _sum(ops.abs(delta))


def _sum(values: Tensor) -> Tensor:
    return ops.sum(ops.reshape(values, (ops.shape(values)[0], -1)), axis=1)


def bisected(
    surplus: Callable[[Tensor], Tensor], high: Tensor, enough: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Bisects for the threshold at which `surplus` changes its sign, for each example.

    Returns two adjacent thresholds, with `surplus >= 0` at the first and `surplus < 0` at the
    second. Even if `surplus` sums over all values in each step, bisection is several times as fast
    as sorting on both backends. It is exact up to rounding if the result is interpolated.

    Args:
        surplus: decreasing function of thresholds, shape `(batch_size,)`. Where it is negative even
            at 0, the first threshold is 0.
        high: tensor, shape `(batch_size,)`: thresholds at which `surplus` is negative.
        enough: the bisection stops early once `surplus` is smaller than this at the first threshold
            of every example.
    """
    num_halvings = _NUM_HALVINGS[working_dtype(high.dtype)]

    def halve(step: Tensor, low: Tensor, high: Tensor, at_low: Tensor) -> tuple[Any, ...]:
        middle = (low + high) / 2
        value = surplus(middle)
        is_low = value >= 0
        low, high = ops.where(is_low, middle, low), ops.where(is_low, high, middle)
        return step + 1, low, high, ops.where(is_low, value, at_low)

    def unfinished(step: Tensor, low: Tensor, high: Tensor, at_low: Tensor) -> Tensor:
        return ops.logical_and(step < num_halvings, ops.any(at_low >= enough))

    low = ops.zeros_like(high)
    _, low, high, _ = ops.while_loop(unfinished, halve, (0, low, high, low + float("inf")))
    return low, high


def dimensions(x: Tensor, bounds: tuple[Tensor, Tensor]) -> Tensor:
    """Counts the values of an example that can change.

    Returns a number, or a tensor with one number for each example if the bounds are tensors.
    """
    if not len(getattr(bounds[0], "shape", ())):
        return math.prod(x.shape[1:])
    free = ops.cast(bounds[1] > bounds[0], x.dtype)
    return ops.maximum(ops.sum(ops.reshape(free, (ops.shape(x)[0], -1)), axis=1), 1.0)


def movable(gradient: Tensor, x: Tensor, epsilon: Tensor, bounds: tuple[Tensor, Tensor]) -> Tensor:
    """Masks the values that can still move in the direction of the gradient.

    A value whose distance to a bound is at most a millionth of the radius `epsilon` counts as
    being at the bound, because of rounding. NaN gradients count as movable.
    """
    least = NEGLIGIBLE * epsilon
    at_upper = ops.logical_and(gradient > 0, bounds[1] - x <= least)
    at_lower = ops.logical_and(gradient < 0, x - bounds[0] <= least)
    return ops.logical_not(ops.logical_or(at_upper, at_lower))


def steepest_direction(
    gradient: Tensor, norm: str, count: Tensor = 1, movable: Tensor = True
) -> Tensor:
    """Returns the point of the unit ball that has the largest inner product with `gradient`.

    `argmax_{||d|| <= 1} <d, g>`: sign(g) for `"linf"`, g / ||g||_2 for `"l2"`; 0 where g is 0.

    For `"l1"` only the value with the largest `|g_i|` is nonzero. With `count`, a number or one
    number for each example, the `count` largest `|g_i|` among the `movable` values share the
    length: `sign(g_i) / count`. Values that are not movable and whose `|g_i|` is at least as large
    as the smallest of these get the same step, beyond their bounds. The projection reduces the step
    of each value by the same amount, so it leaves them at their bounds.
    """
    if norm == "linf":
        return ops.sign(gradient)
    if norm == "l1":
        size = ops.abs(gradient)
        counted = ops.where(movable, size, -ops.ones_like(size))
        count = ops.cast(count, size.dtype)

        def surplus(least: Tensor) -> Tensor:
            return _sum(ops.cast(counted >= per_example(least, size), size.dtype)) - count

        largest = maximum_norm(gradient)
        # Below a surplus of 1 the threshold selects the `count` largest, rounded up.
        least, _ = bisected(surplus, largest, enough=1.0)
        chosen = ops.where(counted >= per_example(least, size), counted, per_example(largest, size))
        least = ops.min(ops.reshape(chosen, (ops.shape(size)[0], -1)), axis=1)
        signs = ops.sign(gradient)
        # A NaN gradient is not smaller than `least`, so the result stays NaN.
        signs = ops.where(size < per_example(least, size), ops.zeros_like(signs), signs)
        can_move = ops.cast(counted >= 0, signs.dtype)
        return signs / per_example(ops.maximum(absolute_norm(signs * can_move), 1.0), signs)
    length = euclidean_norm(gradient)
    safe = ops.where(length > 0, length, ops.ones_like(length))
    return gradient / per_example(safe, gradient)


def steepest_step(
    gradient: Tensor, size: Tensor, norm: str, count: Tensor = 1, movable: Tensor = True
) -> Tensor:
    """Returns `argmax <d, g>` subject to `||d / size|| <= 1`; for L1 see `steepest_direction`.

    `size` is a number, or a tensor that broadcasts to `gradient`, with one size for each value.
    """
    if not len(getattr(size, "shape", ())):
        return size * steepest_direction(gradient, norm, count, movable)
    return size * steepest_direction(size * gradient, norm, count, movable)


def projection(
    x: Tensor, epsilon: Tensor, norm: str, bounds: tuple[Tensor, Tensor]
) -> Callable[[Tensor], Tensor]:
    """Returns the projection to the ball of radius `epsilon` around `x` and to `bounds`.

    For `"linf"` and `"l1"` it computes `argmin ||z - x_adv||_2` over the intersection of ball and
    bounds. For `"l2"` it projects to the ball and then to the bounds. The result lies in both,
    because clipping to an interval that contains `x` moves no coordinate away from `x`. `bounds`
    are numbers, or tensors of the shape of `x`.

    In L1, with `u = x_adv - x` and the room `r_i` from `x_i` to the bound in the direction of
    `u_i`,

        z_i = x_i + sign(u_i) * min(max(|u_i| - lambda, 0), r_i)

    for the smallest `lambda >= 0` with `||z - x||_1 <= epsilon`. This norm is piecewise linear and
    decreasing in `lambda`, and Newton's method finds the root in a few steps.
    """
    if norm == "linf":
        lower = ops.maximum(x - epsilon, bounds[0])
        upper = ops.minimum(x + epsilon, bounds[1])
        return lambda x_adv: ops.minimum(ops.maximum(x_adv, lower), upper)
    if norm == "l1":
        return lambda x_adv: _project_l1(x, x_adv, epsilon, bounds)

    def project(x_adv: Tensor) -> Tensor:
        delta = x_adv - x
        length = euclidean_norm(delta)
        factor = epsilon / ops.maximum(ops.maximum(length, epsilon), _SMALLEST)
        return ops.clip(x + delta * per_example(factor, delta), *bounds)

    return project


def _project_l1(x: Tensor, x_adv: Tensor, epsilon: Tensor, bounds: tuple[Tensor, Tensor]) -> Tensor:
    delta = x_adv - x
    size = ops.abs(delta)
    low, high = (ops.cast(bound, size.dtype) for bound in bounds)
    limit = ops.where(delta > 0, high, low)
    room = ops.abs(limit - x)

    def shrunk(threshold: Tensor) -> Tensor:
        return ops.minimum(ops.maximum(size - per_example(threshold, size), 0), room)

    new = shrunk(_threshold(size, room, shrunk, epsilon))
    # Rounding may leave the norm slightly above `epsilon`: shrink the values not at their bound.
    at_limit = new >= room
    rest = absolute_norm(ops.where(at_limit, ops.zeros_like(new), new))
    excess_share = (absolute_norm(new) - epsilon) / ops.maximum(rest, _SMALLEST)
    factor = 1 - ops.clip(excess_share, 0, 1)
    z = ops.clip(x + ops.sign(delta) * new * per_example(factor, new), *bounds)
    # `x + (limit - x)` may differ from the limit by rounding.
    return ops.where(ops.logical_and(at_limit, new > 0), limit, z)


def _threshold(
    size: Tensor, room: Tensor, shrunk: Callable[[Tensor], Tensor], epsilon: Tensor
) -> Tensor:
    """Finds `lambda` of the projection in L1; it is 0 where the norm is small enough already.

    Uses Newton's method from below where its iterate stays inside the bracket, and the secant
    elsewhere. Every third step bisects, because the slope is 0 where all values are at their
    bounds.
    """
    dtype = working_dtype(size.dtype)
    precision, rounding = _PRECISION[dtype], _ROUNDING[dtype]

    def excess(threshold: Tensor) -> Tensor:
        return _sum(shrunk(threshold)) - epsilon

    def is_open(step: Tensor, ends: Any, values: Tensor) -> Tensor:
        # False for NaN.
        wide = ends[1] - ends[0] > rounding * ends[1]
        far = ops.logical_and(values[0] > precision * epsilon, -values[1] > precision * epsilon)
        return ops.logical_and(ops.logical_and(wide, far), step < _MAX_STEPS)

    def narrow(step: Tensor, ends: Any, values: Tensor) -> tuple[Any, ...]:
        (low, high), (above, below) = ends, values
        left = size - per_example(low, size)
        falling = ops.cast(ops.logical_and(left > 0, left < room), size.dtype)
        newton = low + above / ops.maximum(_sum(falling), 1.0)
        secant = low + (high - low) * above / ops.maximum(above - below, _SMALLEST)
        new = ops.where(newton < high, newton, secant)
        new = ops.where(step % 3 == 2, (low + high) / 2, new)
        value = excess(new)
        unfinished = is_open(step, ends, values)
        rises = ops.logical_and(unfinished, value >= 0)
        falls = ops.logical_and(unfinished, value < 0)
        ends = ops.where(rises, new, low), ops.where(falls, new, high)
        return step + 1, ends, (ops.where(rises, value, above), ops.where(falls, value, below))

    high = maximum_norm(size)
    low = ops.zeros_like(high)
    start = (0, (low, high), (excess(low), excess(high)))
    _, (low, high), (above, below) = ops.while_loop(
        lambda *state: ops.any(is_open(*state)), narrow, start
    )
    # The norm need not be linear between ends that are far apart: an end that is a root is exact.
    root = precision * epsilon
    above = ops.where(above <= root, ops.zeros_like(above), above)
    below = ops.where(-below <= root, ops.zeros_like(below), -below)
    return low + above / ops.maximum(above + below, _SMALLEST) * (high - low)


def random_in_ball(
    x: Tensor, epsilon: Tensor, norm: str, seed: Seed, bounds: tuple[Tensor, Tensor]
) -> Tensor:
    """Draws uniformly from the ball of radius `epsilon` around each `x`.

    If the bounds are tensors, values whose two bounds are equal are fixed, and the ball has fewer
    dimensions.
    """
    shape = ops.shape(x)
    if norm == "linf":
        return x + backend.uniform(shape, seed, -epsilon, epsilon, x.dtype)
    if norm == "l1":
        draws = backend.uniform(shape, backend.fold_in(seed, 0), -1.0, 1.0, x.dtype)
        draws = ops.sign(draws) * -ops.log(ops.maximum(ops.abs(draws), _SMALLEST))
    else:
        draws = backend.normal(shape, backend.fold_in(seed, 0), x.dtype)
    if len(getattr(bounds[0], "shape", ())):
        draws = draws * ops.cast(bounds[1] > bounds[0], x.dtype)
    length = (absolute_norm if norm == "l1" else euclidean_norm)(draws)
    direction = draws / per_example(ops.maximum(length, _SMALLEST), draws)
    radius = backend.uniform((shape[0],), backend.fold_in(seed, 1), 0.0, 1.0, x.dtype)
    radius = radius ** (1.0 / dimensions(x, bounds))
    return x + epsilon * per_example(radius, x) * direction
