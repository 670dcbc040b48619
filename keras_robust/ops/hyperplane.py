"""Projection to the part of a hyperplane that lies within the bounds."""

from typing import Any

from keras import ops

from keras_robust.ops.balls import absolute_norm, bisected, maximum_norm, per_example
from keras_robust.types import Tensor


def to_hyperplane(
    x: Tensor, normal: Tensor, distance: Tensor, norm: str, bounds: tuple[float, float]
) -> Tensor:
    """Computes the smallest step from `x` to a hyperplane that stays within the bounds.

    `argmin ||d||` subject to `<w, d> = c` and `low <= x + d <= high`. If no such `d` exists, the
    step within the bounds whose inner product with `w` is nearest to `c`.

    With `s_i = 1` for `"linf"`, `|w_i|` for `"l2"`, and `r_i` the room between `x_i` and the
    bound in the direction of `sign(c w_i)`, the solution is

        d_i = sign(c w_i) * min(t s_i, r_i)    with    phi(t) = sum_i |w_i| min(t s_i, r_i) = |c|

    (Croce and Hein, 2020, arXiv 1907.02044, who solve the equation by sorting). `phi` is
    increasing, concave and piecewise linear. Newton's iterates from `t = 0` therefore increase to
    the solution and reach it in a finite number of steps: 4 to 8 if it is far from the bounds, and
    up to about 30 if nearly all values have to stop at them.

    For `"l1"`, the values with the largest `|w_i|` move to their bounds until `|c|` is reached. The
    values with `|w_i| > tau` move all the way, and those at `tau` as far as needed. `tau` is found
    by bisection.

    Args:
        x: tensor, shape `(batch_size, ...)`, inside `bounds`.
        normal: tensor like `x`: `w`. Where it is 0, the step is 0.
        distance: tensor, shape `(batch_size,)`: `c`.
        norm: `"linf"`, `"l2"` or `"l1"`.
        bounds: pair of floats.
    """
    largest = maximum_norm(normal)
    largest = ops.where(largest > 0, largest, ops.ones_like(largest))
    normal = normal / per_example(largest, x)  # Keeps squares from under- or overflow.
    target = ops.abs(distance) / largest

    direction = ops.sign(normal) * per_example(ops.sign(distance), x)
    room = ops.maximum(ops.where(direction > 0, bounds[1] - x, x - bounds[0]), 0)
    size = ops.abs(normal)
    if norm == "l1":
        return direction * _filled(size, room, target)
    speed = ops.ones_like(x) if norm == "linf" else size
    stops_at = room / ops.where(speed > 0, speed, ops.ones_like(x))
    slopes, limits, zeros = size * speed, size * room, ops.zeros_like(x)

    def total(values: Tensor) -> Tensor:
        return ops.sum(ops.reshape(values, (ops.shape(x)[0], -1)), axis=1)

    def newton(t: Tensor, _: Any) -> tuple[Tensor, Tensor]:
        stopped = stops_at <= per_example(t, x)
        slope = total(ops.where(stopped, zeros, slopes))
        missing = target - total(ops.where(stopped, limits, zeros))
        new = missing / ops.where(slope > 0, slope, ops.ones_like(slope))
        new = ops.where(slope > 0, ops.maximum(new, t), t)
        return new, ops.any(new > t)

    start = (ops.zeros_like(target), ops.convert_to_tensor(True))
    t = ops.while_loop(lambda t, moved: moved, newton, start)[0]
    step = ops.minimum(speed * per_example(t, x), room)
    return direction * ops.where(speed > 0, step, zeros)  # `t` may be infinite.


def _filled(size: Tensor, room: Tensor, target: Tensor) -> Tensor:
    """Computes the cheapest steps, at most `room`, with `sum_i size_i step_i = target`."""
    zeros = ops.zeros_like(size)
    safe = ops.where(size > 0, size, ops.ones_like(size))
    # No value needs to move further than the step with which it alone reaches the target.
    room = ops.where(size > 0, ops.minimum(room, per_example(target, size) / safe), zeros)
    gains = size * room

    def gain(above: Tensor) -> Tensor:
        return absolute_norm(ops.where(size > per_example(above, size), gains, zeros))

    low, high = bisected(lambda above: gain(above) - target, maximum_norm(size))
    first, rest = gain(high), gain(low) - gain(high)
    share = (target - first) / ops.where(rest > 0, rest, ops.ones_like(rest))
    share = per_example(ops.clip(share, 0.0, 1.0), size)
    low, high = per_example(low, size), per_example(high, size)
    return ops.where(size > high, room, ops.where(size > low, share * room, zeros))
