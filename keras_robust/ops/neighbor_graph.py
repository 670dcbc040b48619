"""The directed graph of nearest neighbours, with weights that decrease with the distance."""

from collections.abc import Callable
from typing import Any, NamedTuple

from keras import ops

from keras_robust.ops.nearest import has_distances, nearest, smallest
from keras_robust.types import Tensor

KERNELS = ("gaussian", "quartic")
# The number of rows whose neighbours are gathered at once.
_MAX_ROWS = 1024


class Edges(NamedTuple):
    """Directed edges with weights `w(source, target)`: tensors of shape `(num_edges,)`."""

    source: Any
    target: Any
    weight: Any


class ListRadii(NamedTuple):
    """Radii of each template point's own list of neighbours, which decide what may enter it.

    `below`, `sigma` and `farthest` are the squared distances to its neighbours number n - 1, n and
    m within the template, tensors of shape `(t,)`. With fewer than n neighbours, `below` is the
    distance to the last one and `sigma` is infinite.
    """

    below: Any
    sigma: Any
    farthest: Any

    def scale(self) -> Tensor:
        """Returns `sigma`, or the finite `below` where `sigma` is infinite."""
        return ops.where(self.sigma < float("inf"), self.sigma, self.below)


def kernel_weights(distances: Tensor, sigma: Tensor, kernel: str) -> Tensor:
    """Computes `exp(-d^2 / sigma^2)` or `exp(-d^4 / sigma^4)`; 0 where the distance is infinite.

    `distances` holds `d^2`, and `sigma` holds `sigma^2`.
    """
    is_edge = distances < float("inf")
    # `where` is applied before and after: a gradient of infinity times 0 would be NaN.
    ratio = ops.where(is_edge, distances, ops.zeros_like(distances)) / sigma
    ratio = ratio if kernel == "gaussian" else ops.square(ratio)
    return ops.where(is_edge, ops.exp(-ratio), ops.zeros_like(ratio))


def own_sigma(distances: Tensor, sigma_neighbor: int) -> Tensor:
    """Returns the squared distance to neighbour number n from sorted lists, shape `(rows, 1)`.

    If a list is shorter than n, it is the last distance of the list. If it would be 0 because of
    duplicate points, it is the smallest positive distance of the list, or 1 if there is none.
    """
    is_edge = distances < float("inf")
    finite = ops.where(is_edge, distances, ops.zeros_like(distances))
    sigma = finite[:, sigma_neighbor - 1 : sigma_neighbor]
    last = ops.max(finite, axis=1, keepdims=True)
    sigma = ops.where(is_edge[:, sigma_neighbor - 1 : sigma_neighbor], sigma, last)
    positive = ops.where(finite > 0, finite, ops.full_like(finite, float("inf")))
    least = ops.min(positive, axis=1, keepdims=True)
    least = ops.where(least < float("inf"), least, ops.ones_like(least))
    return ops.where(sigma > 0, sigma, least)


def center_of(points: Tensor) -> Tensor:
    """Computes the mean of the points, without gradient; NaN if a point has no finite distances."""
    points = ops.stop_gradient(points)
    center = ops.mean(points, axis=0)
    nan = ops.full_like(center, float("nan"))
    return ops.where(ops.all(has_distances(points)), center, nan)


def measurable(points: Tensor) -> tuple[Tensor, Tensor]:
    """Sets points that have no finite distances to 0.

    Returns the points and a mask of those with finite distances, shape `(num_points,)`.
    """
    is_point = has_distances(points)
    return ops.where(is_point[:, None], points, ops.zeros_like(points)), is_point


def union_edges(
    points: Tensor, num_neighbors: int, sigma_neighbor: int, kernel: str, is_point: Tensor
) -> Edges:
    """Builds each point's edges to its m nearest among all points.

    Rows where `is_point` is False have no edges.
    """
    fixed = ops.stop_gradient(points)
    found, indices = nearest(fixed, fixed, num_neighbors, 0, is_point)
    distances = recorded_distances(points, points, found, indices)
    weight = kernel_weights(distances, own_sigma(distances, sigma_neighbor), kernel)
    weight = _where_rows(is_point, weight)
    return Edges(_rows(indices), ops.reshape(indices, (-1,)), ops.reshape(weight, (-1,)))


def template_radii(template: Tensor, num_neighbors: int, sigma_neighbor: int) -> ListRadii:
    """Computes the radii of the template points' own lists, without any query."""
    fixed = ops.stop_gradient(template)
    num_rows = template.shape[0]
    step = _MAX_ROWS if num_rows is not None and num_rows > _MAX_ROWS else num_rows
    parts = []
    for row in range(0, num_rows, step) if step else [0]:
        rows = slice(row, row + step if step else None)
        found, indices = nearest(fixed[rows], fixed, num_neighbors, row)
        distances = recorded_distances(template[rows], template, found, indices)
        parts.append(radii_of_lists(distances, sigma_neighbor))
    return ListRadii(*(ops.concatenate(part) for part in zip(*parts, strict=True)))


def radii_of_lists(distances: Tensor, sigma_neighbor: int) -> ListRadii:
    """Computes the radii from lists of squared distances in ascending order."""
    distances = ops.convert_to_tensor(distances)
    sigma = own_sigma(distances, sigma_neighbor)[:, 0]
    below = distances[:, max(sigma_neighbor - 2, 0)] if sigma_neighbor > 1 else 0 * sigma
    is_short = distances[:, sigma_neighbor - 1] == float("inf")
    below = ops.where(is_short, sigma, ops.minimum(below, sigma))
    sigma = ops.where(is_short, ops.full_like(sigma, float("inf")), sigma)
    return ListRadii(below, sigma, distances[:, -1])


def edges_to_template(
    queries: Tensor,
    template: Tensor,
    radii: ListRadii,
    found: tuple[Tensor, Tensor, Tensor, Tensor],
    sigma_neighbor: int,
    kernel: str,
    joint: bool,
    is_query: Tensor,
) -> Edges:
    """Builds the edges that touch a query, from lists that were searched for in the template alone.

    With `joint=False` each query forms a separate graph with the template, and the edges are
    exactly those of that graph: the query may enter a template point's list and change its sigma.
    With `joint=True` the queries also have edges to each other, and the result is an approximation:
    queries neither push one another out of a template point's list nor change its sigma.

    Args:
        queries: tensor, shape `(q, dimensions)`.
        template: tensor, shape `(t, dimensions)`.
        radii: `ListRadii` of the template.
        found: the result of `nearest_in_two_ways` with `radii.scale()`: each query's nearest
            template points, and the template points whose lists it may enter.
        sigma_neighbor: int, n.
        kernel: one of `KERNELS`.
        joint: bool.
        is_query: bool tensor, shape `(q,)`. Rows where it is False have no edges.
    """
    num_queries = ops.shape(queries)[0]
    distances = recorded_distances(queries, template, found[0], found[1])
    indices = found[1] + num_queries
    if joint:
        fixed, count = ops.stop_gradient(queries), indices.shape[1]
        others = nearest(fixed, fixed, count, 0, is_query)
        own = recorded_distances(queries, queries, *others)
        distances = ops.concatenate([distances, own], axis=1)
        indices = ops.concatenate([indices, others[1]], axis=1)
        _, places = smallest(ops.stop_gradient(distances), count)
        distances = ops.take_along_axis(distances, places, axis=1)
        indices = ops.take_along_axis(indices, places, axis=1)
    weight = kernel_weights(distances, own_sigma(distances, sigma_neighbor), kernel)
    weight = _where_rows(is_query, weight)

    reverse = found[3]
    back = recorded_distances(queries, template, found[2], reverse)
    below, sigma, farthest = (ops.take(values, reverse) for values in radii)
    if joint:
        sigma = ops.take(radii.scale(), reverse)
    else:
        sigma = ops.minimum(sigma, ops.maximum(back, below))
        sigma = ops.where(sigma > 0, sigma, ops.ones_like(sigma))
    is_edge = ops.logical_and(back < farthest, is_query[:, None])
    back_weight = ops.where(is_edge, kernel_weights(back, sigma, kernel), ops.zeros_like(back))
    return _joined(indices, weight, (reverse + num_queries, _rows(reverse)), back_weight)


def edges_of_union(
    queries: Tensor,
    template: Tensor,
    lists: Tensor,
    sigma_neighbor: int,
    kernel: str,
    is_query: Tensor,
) -> Edges:
    """Builds those edges of `union_edges` on queries and template that touch a query.

    The template points' lists within the template are known. The list of a template point in the
    union holds the nearest points of its known list and the queries. Only the neighbours of queries
    and the queries near a template point need to be searched for.

    Args:
        queries: tensor, shape `(q, dimensions)`.
        template: tensor, shape `(t, dimensions)`.
        lists: tensor, shape `(t, m)`: the squared distances from each template point to its nearest
            other template points, in ascending order; infinite where there are fewer.
        sigma_neighbor, kernel: n, and one of `KERNELS`.
        is_query: bool tensor, shape `(q,)`. Rows where it is False have no edges.
    """
    num_queries, num_neighbors = ops.shape(queries)[0], lists.shape[1]
    points = ops.concatenate([queries, template])
    is_point = ops.concatenate([is_query, ops.ones_like(template[:, 0], dtype="bool")])
    found, indices = nearest(
        ops.stop_gradient(queries), ops.stop_gradient(points), num_neighbors, 0, is_point
    )
    distances = recorded_distances(queries, points, found, indices)
    weight = kernel_weights(distances, own_sigma(distances, sigma_neighbor), kernel)
    weight = _where_rows(is_query, weight)
    count = min(num_neighbors, queries.shape[0] or num_neighbors)
    near, visitors = nearest(
        ops.stop_gradient(template), ops.stop_gradient(queries), count, None, is_query
    )
    near = recorded_distances(template, queries, near, visitors)
    # The j-th nearest query (from 0) is in the merged list if at most m - 1 - j template points are
    # nearer than it.
    is_edge = near <= ops.flip(lists, axis=1)[:, :count]
    sigma = _sigma_of_both(lists, near, sigma_neighbor)
    back_weight = ops.where(is_edge, kernel_weights(near, sigma, kernel), ops.zeros_like(near))
    ends = (_rows(visitors) + num_queries, ops.reshape(visitors, (-1,)))
    return _joined(indices, weight, ends, back_weight)


def _sigma_of_both(first: Tensor, second: Tensor, sigma_neighbor: int) -> Tensor:
    """Computes `own_sigma` of two sorted lists merged into one.

    The first list must have at least n entries.
    """
    zero = ops.zeros_like(first[:, :1])
    parts = [ops.concatenate([zero, part[:, :sigma_neighbor]], axis=1) for part in (first, second)]
    # If j of the n nearest come from the second list, their largest distance is the larger of entry
    # n - j of the first list and entry j of the second. Entry n of the merged list is the minimum
    # of this over j.
    width = parts[1].shape[1]
    reached = ops.maximum(ops.flip(parts[0], axis=1)[:, :width], parts[1])
    sigma = ops.min(reached, axis=1, keepdims=True)
    both = ops.concatenate([first, second], axis=1)
    is_edge = both < float("inf")
    last = ops.max(ops.where(is_edge, both, ops.zeros_like(both)), axis=1, keepdims=True)
    positive = ops.where(both > 0, both, ops.full_like(both, float("inf")))
    least = ops.min(positive, axis=1, keepdims=True)
    least = ops.where(least < float("inf"), least, ops.ones_like(least))
    sigma = ops.where(sigma < float("inf"), sigma, last)
    return ops.where(sigma > 0, sigma, least)


def _where_rows(is_row: Tensor, values: Tensor) -> Tensor:
    return ops.where(is_row[:, None], values, ops.zeros_like(values))


def _joined(
    indices: Tensor, weight: Tensor, ends: tuple[Tensor, Tensor], back_weight: Tensor
) -> Edges:
    """Joins the queries' own edges with the edges from template points to queries.

    `ends` holds the sources and the targets of the latter.
    """
    sources, targets = (ops.reshape(end, (-1,)) for end in ends)
    return Edges(
        ops.concatenate([_rows(indices), sources]),
        ops.concatenate([ops.reshape(indices, (-1,)), targets]),
        ops.concatenate([ops.reshape(weight, (-1,)), ops.reshape(back_weight, (-1,))]),
    )


def recorded_distances(
    x: Tensor, points: Tensor, distances: Tensor, indices: Tensor, num_derivatives: int = 2
) -> Tensor:
    """Gives the distances from a search a gradient in both points; 0 where they are infinite.

    They can be differentiated `num_derivatives` times.
    """
    if num_derivatives == 0:
        return distances
    distances, indices = ops.stop_gradient(distances), ops.stop_gradient(indices)

    # All tensors are arguments, because on JAX those of an `ops.switch` branch cannot be captured.
    @ops.custom_gradient
    def record(
        x: Tensor, points: Tensor, distances: Tensor, indices: Tensor
    ) -> tuple[Any, Callable[..., Any]]:
        def gradient(*args: Any, upstream: Tensor = None) -> tuple[Any, ...]:
            upstream = args[0] if upstream is None else upstream
            upstream = ops.where(distances < float("inf"), upstream, ops.zeros_like(upstream))
            difference = x[:, None] - ops.take(points, indices, axis=0)
            pull = 2 * upstream[:, :, None] * difference
            flat = ops.reshape(pull, (-1, points.shape[1]))
            num_points = ops.shape(points)[0]
            push = ops.segment_sum(flat, ops.reshape(indices, (-1,)), num_segments=num_points)
            return ops.sum(pull, axis=1), -push, None, None

        # JAX computes the second derivative from the value returned here, not from `gradient`.
        again = recorded_distances(x, points, distances, indices, num_derivatives - 1)
        return again, gradient

    return record(x, points, distances, indices)


def _rows(indices: Tensor) -> Tensor:
    """Returns the row number of each entry, flattened."""
    rows = ops.arange(ops.shape(indices)[0], dtype="int32")[:, None]
    return ops.reshape(rows + ops.zeros_like(indices), (-1,))
