"""Interpolation on a weighted graph: the linear system of WNLL and its adjoint."""

from collections.abc import Callable
from typing import Any

from keras import ops

from keras_robust.ops.nearest import dtype_name
from keras_robust.ops.neighbor_graph import Edges
from keras_robust.types import Labels, Tensor

# Above this number of points, conjugate gradients replace the Cholesky decomposition.
MAX_DENSE = 3000
# The weight that ties every point to the mean of the known values, relative to the weight of its
# edges. It determines u in components of the graph without any known point.
_TIE = {"float32": 2e-6, "float64": 1e-13}
_TOLERANCE = {"float32": 1e-6, "float64": 1e-12}
_MAX_ITERATIONS = 1000


def interpolate(
    edges: Edges,
    values: Tensor,
    is_known: Tensor,
    size: Tensor,
    template_weight: Tensor,
    joint: bool = True,
) -> Tensor:
    """Extends known values harmonically to the other points of a graph.

    Solves, for each unknown point x (Wang and Osher, eq. 5),

        sum_y (w(x, y) + w(y, x)) (u(x) - u(y)) + gamma sum_{y known} w(y, x) (u(x) - g(y)) = 0.

    The system is singular for a component of the graph without any known point. Every point is
    therefore tied to the mean of the known values, by a weight that is negligible elsewhere. Such a
    component gets this mean.

    The result is differentiable in the weights and in the values. The gradient comes from the
    adjoint system, which has the same matrix S: with `U_bar` the gradient in u,
    `Lambda = S^-1 U_bar` and

        w_bar(i, j) = c(i, j) sum_k (Lambda_ik - Lambda_jk) (u_jk - u_ik),

    where `Lambda` is 0 on known points, and c is `1 + gamma` from known to unknown points and 1
    elsewhere.

    Args:
        edges: the graph.
        values: tensor, shape `(num_points, num_classes)`: g on the known points.
        is_known: bool tensor, shape `(num_points,)`.
        size: int. Only the first `size` points may be unknown.
        template_weight: gamma, a number or a scalar tensor.
        joint: bool. Whether unknown points have edges between them. Defaults to `True`.

    Returns:
        u on the first `size` points, shape `(size, num_classes)`.
    """
    source, target, weight = edges
    from_known, to_known = ops.take(is_known, source), ops.take(is_known, target)
    factor = ops.where(
        to_known,
        ops.where(from_known, ops.zeros_like(weight), ops.ones_like(weight)),
        ops.where(from_known, ops.ones_like(weight) + template_weight, ops.ones_like(weight)),
    )
    is_mixed = ops.logical_xor(from_known, to_known)
    # For an edge between a known and an unknown point: `row` is the unknown one, `other` the known.
    row = ops.where(ops.logical_and(is_mixed, to_known), source, target)
    row = ops.where(row < size, row, ops.zeros_like(row))
    other = ops.where(to_known, target, source)
    is_unknown = ops.logical_not(is_known[:size])[:, None]
    num_points = ops.shape(values)[0]

    # All tensors are arguments, because on JAX those of an `ops.switch` branch cannot be captured.
    @ops.custom_gradient
    def solve(
        weight: Tensor, values: Tensor, source: Tensor, target: Tensor, row: Tensor,
        other: Tensor, is_mixed: Tensor, is_known: Tensor, is_unknown: Tensor,
    ) -> tuple[Any, Callable[..., Any]]:  # fmt: skip
        outer = ops.where(is_mixed, weight, ops.zeros_like(weight))
        inner = ops.where(is_mixed, ops.zeros_like(weight), weight)
        solver = _solver(source, target, inner, outer, row, is_unknown, size, joint)
        pull = outer[:, None] * ops.take(values, other, axis=0)
        # `scatter` adds like `segment_sum`, but is faster with TensorFlow on CPUs.
        pull = ops.scatter(row[:, None], pull, (size, ops.shape(values)[1]))
        share = ops.cast(is_known, values.dtype)[:, None]
        prior = ops.sum(share * values, axis=0) / ops.maximum(ops.sum(share), 1.0)
        u = ops.where(is_unknown, solver(pull, prior), values[:size])

        def gradient(*args: Any, upstream: Tensor = None) -> tuple[Any, ...]:
            upstream = args[0] if upstream is None else upstream
            zero = ops.zeros_like(upstream)
            adjoint = solver(ops.where(is_unknown, upstream, zero), zero[0])
            rest = values[size:]
            everywhere = ops.concatenate([u, rest])
            adjoints = ops.concatenate([adjoint, ops.zeros_like(rest)])
            fall = ops.take(adjoints, source, axis=0) - ops.take(adjoints, target, axis=0)
            rise = ops.take(everywhere, target, axis=0) - ops.take(everywhere, source, axis=0)
            weight_bar = ops.sum(fall * rise, axis=1)
            push = outer[:, None] * ops.take(adjoint, row, axis=0)
            values_bar = ops.segment_sum(push, other, num_segments=num_points)
            own = ops.where(is_unknown, zero, upstream)
            values_bar = values_bar + ops.concatenate([own, ops.zeros_like(rest)])
            return weight_bar, values_bar, *[None] * 7

        return u, gradient

    return solve(
        weight * factor, values, source, target, row, other, is_mixed, is_known, is_unknown
    )


def _solver(
    source: Tensor,
    target: Tensor,
    inner: Tensor,
    outer: Tensor,
    row: Tensor,
    is_unknown: Tensor,
    size: Tensor,
    joint: bool,
) -> Callable[[Any, Any], Any]:
    """Returns a function that solves the system for the first `size` points.

    Its arguments are the right-hand side and the mean of the known values.
    """
    degree = ops.segment_sum(outer, row, num_segments=size)
    for end in (source, target):
        inside = ops.where(end < size, end, ops.zeros_like(end))
        part = ops.where(end < size, inner, ops.zeros_like(inner))
        degree = degree + ops.segment_sum(part, inside, num_segments=size)
    degree = ops.where(is_unknown[:, 0], degree, ops.ones_like(degree))
    scale = ops.where(degree > 0, degree, ops.ones_like(degree))
    tie = _TIE[dtype_name(inner)] * scale
    diagonal = (degree + tie)[:, None]
    if not joint:
        return lambda pull, prior: (pull + tie[:, None] * prior) / diagonal
    is_dense = not isinstance(size, int) or size <= MAX_DENSE
    solve = (_dense if is_dense else _iterative)(source, target, inner, diagonal, size)
    return lambda pull, prior: solve(pull + tie[:, None] * prior)


def _dense(
    source: Tensor, target: Tensor, inner: Tensor, diagonal: Tensor, size: Tensor
) -> Callable[[Tensor], Tensor]:
    is_inside = ops.logical_and(source < size, target < size)
    place = ops.where(is_inside, source * size + target, ops.zeros_like(source))
    inner = ops.where(is_inside, inner, ops.zeros_like(inner))
    matrix = ops.reshape(ops.segment_sum(inner, place, num_segments=size * size), (size, size))
    matrix = ops.eye(size, dtype=inner.dtype) * diagonal - matrix - ops.transpose(matrix)
    lower = ops.cholesky(matrix)

    def solve(right: Tensor) -> Tensor:
        half = ops.solve_triangular(lower, right, lower=True)
        return ops.solve_triangular(ops.transpose(lower), half, lower=False)

    return solve


def _iterative(
    source: Tensor, target: Tensor, inner: Tensor, diagonal: Tensor, size: int
) -> Callable[[Tensor], Tensor]:
    """Solves for all columns at once by conjugate gradients, preconditioned by the diagonal."""
    is_inside = ops.logical_and(source < size, target < size)
    weight = ops.where(is_inside, inner, ops.zeros_like(inner))[:, None]
    source = ops.where(is_inside, source, ops.zeros_like(source))
    target = ops.where(is_inside, target, ops.zeros_like(target))

    def apply(u: Tensor) -> Tensor:
        there = ops.segment_sum(weight * ops.take(u, target, axis=0), source, num_segments=size)
        back = ops.segment_sum(weight * ops.take(u, source, axis=0), target, num_segments=size)
        return diagonal * u - there - back

    def dot(x: Tensor, y: Labels) -> Tensor:
        return ops.sum(x * y, axis=0)

    def solve(right: Tensor) -> Tensor:
        enough = _TOLERANCE[dtype_name(inner)] ** 2 * dot(right / diagonal, right)

        def unfinished(u: Tensor, residual: Tensor, direction: Tensor, rho: Tensor) -> Tensor:
            return ops.any(rho > enough)

        def step(u: Tensor, residual: Tensor, direction: Tensor, rho: Tensor) -> tuple[Any, ...]:
            image = apply(direction)
            curvature = dot(direction, image)
            is_open = ops.logical_and(rho > enough, curvature > 0)
            alpha = ops.where(is_open, rho / ops.where(is_open, curvature, 1.0), 0.0)
            u, residual = u + alpha * direction, residual - alpha * image
            new_rho = dot(residual, residual / diagonal)
            beta = ops.where(is_open, new_rho / ops.where(is_open, rho, 1.0), 0.0)
            return u, residual, residual / diagonal + beta * direction, new_rho

        start = ops.zeros_like(right)
        first = right / diagonal
        state = (start, right, first, dot(right, first))
        return ops.while_loop(unfinished, step, state, maximum_iterations=_MAX_ITERATIONS)[0]

    return solve
