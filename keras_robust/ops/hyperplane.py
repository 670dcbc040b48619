"""Projection to the part of a hyperplane that lies in the bounds."""

from typing import Any

from keras import ops

from keras_robust.ops.balls import maximum_norm, per_example


def to_hyperplane(
    x: Any, normal: Any, distance: Any, norm: str, bounds: tuple[float, float]
) -> Any:
    """The smallest step from `x` to a hyperplane that does not leave the bounds.

    `argmin ||d||` subject to `<w, d> = c` and `low <= x + d <= high`. Where no such `d` exists,
    the one within the bounds that has the inner product with `w` nearest to `c`.

    With `s_i = 1` for `"linf"`, `|w_i|` for `"l2"`, and `r_i` the room between `x_i` and the
    bound in the direction of `sign(c w_i)`, the solution is

        d_i = sign(c w_i) * min(t s_i, r_i)    with    phi(t) = sum_i |w_i| min(t s_i, r_i) = |c|

    (Croce and Hein, 2020, arXiv 1907.02044, who solve the equation by sorting). `phi` is
    increasing, concave and piecewise linear, so Newton's iterates from `t = 0` increase to the
    solution, and reach it in a finite number of steps: 4 to 8 where it is far from the bounds,
    up to about 30 where nearly all values have to stop at them.

    Args:
        x: tensor, shape `(batch_size, ...)`, inside `bounds`.
        normal: tensor like `x`, `w`. Where it is 0, so is the step.
        distance: tensor, shape `(batch_size,)`, `c`.
        norm: `"linf"` or `"l2"`.
        bounds: pair of floats.
    """
    largest = maximum_norm(normal)
    largest = ops.where(largest > 0, largest, ops.ones_like(largest))
    normal = normal / per_example(largest, x)  # Squares then neither under- nor overflow.
    target = ops.abs(distance) / largest

    direction = ops.sign(normal) * per_example(ops.sign(distance), x)
    room = ops.maximum(ops.where(direction > 0, bounds[1] - x, x - bounds[0]), 0)
    size = ops.abs(normal)
    speed = ops.ones_like(x) if norm == "linf" else size
    stops_at = room / ops.where(speed > 0, speed, ops.ones_like(x))
    slopes, limits, zeros = size * speed, size * room, ops.zeros_like(x)

    def total(values: Any) -> Any:
        return ops.sum(ops.reshape(values, (ops.shape(x)[0], -1)), axis=1)

    def newton(t: Any, _: Any) -> tuple[Any, Any]:
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
