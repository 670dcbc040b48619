"""Weighted nonlocal Laplacian: labels interpolated on a graph of neighbours."""

from typing import Any

import numpy as np
from keras import ops

from keras_robust import backend, validation
from keras_robust.ops.interpolation import interpolate
from keras_robust.ops.nearest import check_distances_exist, nearest_in_two_ways
from keras_robust.ops.neighbor_graph import (
    KERNELS,
    Edges,
    ListRadii,
    center_of,
    edges_to_template,
    measurable,
    template_radii,
    union_edges,
)
from keras_robust.ops.precision import working_dtype

# With `joint=False`, how many template points' edges to a query are kept.
_MAX_REVERSE = 512


def wnll(
    queries: Any,
    template: Any,
    labels: Any,
    num_neighbors: int = 30,
    sigma_neighbor: int | None = None,
    kernel: str = "gaussian",
    template_weight: float | None = None,
    joint: bool = True,
    num_classes: int | None = None,
) -> Any:
    """Interpolates the labels of template points to queries, on their common graph.

    Solves, for each query x,

        sum_y (w(x, y) + w(y, x)) (u(x) - u(y)) + gamma sum_{y in X^te} w(y, x) (u(x) - g(y)) = 0

    with `u = g` on the template `X^te`. `w(x, y) = exp(-||x - y||^2 / sigma(x)^2)` where y is
    one of the m nearest neighbours of x among all N points, template and queries, and 0
    elsewhere; `sigma(x)` is the distance from x to its n-th neighbour. No point is its own
    neighbour. The solution is a probability vector: `u >= 0`, and it sums to 1.

    u is differentiable in `queries`, `template` and one-hot `labels`, exactly where the lists of
    neighbours do not change: where they do, u jumps. The gradient takes one more solution of the
    linear system.

    Args:
        queries: float tensor, shape `(q, dimensions)`.
        template: float tensor, shape `(t, dimensions)`, of the same dtype.
        labels: of the template, g: integers, shape `(t,)`, or one-hot or any other vectors, shape
            `(t, num_classes)`.
        num_neighbors: int. m. Defaults to `30`. Where there are fewer other points, all of them.
        sigma_neighbor: int. n, at most m. Defaults to `None`: half of m, rounded up.
        kernel: `"gaussian"` (the papers') or `"quartic"`, `exp(-(d / sigma)^4)` (their code's).
            Defaults to `"gaussian"`.
        template_weight: float. gamma. Defaults to `None`: `N / t - 1`.
        joint: bool. `True`: the queries are points of one graph, so that each one's u depends on
            the others. `False`: each query forms a graph with the template by itself.
            Defaults to `True`.
        num_classes: int. Defaults to `None`: one more than the largest label; must be given
            for integer labels while a function is compiled.

    Returns:
        u, shape `(q, num_classes)`, float64 where `queries` are, else float32. A component of the
        graph that contains no template point gets the mean of the template's labels. A class that
        the template lacks gets 0. A query that holds NaN, infinite values, or values so large that
        squares overflow gets NaN, and the others what they get without it.

    Raises:
        ValueError: if an argument is out of its range, or shapes do not match; if template or
            label vectors hold such values. While a function is compiled these cannot be seen:
            every u is NaN then.

    Example:

    >>> import keras, numpy as np, keras_robust as kr
    >>> template = np.array([[0.0, 0.0], [0.0, 1.0], [4.0, 0.0], [4.0, 1.0]], "float32")
    >>> queries = np.array([[1.0, 0.5], [3.0, 0.5]], "float32")
    >>> u = kr.ops.wnll(queries, template, [0, 0, 1, 1], num_neighbors=2, sigma_neighbor=1)
    >>> keras.ops.convert_to_numpy(u).argmax(axis=1).tolist()
    [0, 1]

    The gradient's memory grows with `(q + t) * m * dimensions`. More than 3,000 queries
    are solved for by conjugate gradients, to a relative accuracy of 1e-6 (1e-12 in float64).

    Departures from the papers:

    - The points are tied to the mean label by 2e-6 of their edges' weight (1e-13 in float64).
      Without it the system is singular for a component without a template point.
    - Where the n-th neighbour is at distance 0, sigma is the distance to the nearest one that is
      not: among duplicates it would be 0.
    - With `joint=False`, of the edges from template points to a query the 512 that weigh most
      are kept.

    Reference:

    - Wang and Osher, Graph Interpolating Activation Improves Both Natural and Robust Accuracies
      in Data-Efficient Deep Learning, eq. 5
    - [Shi, Osher and Zhu, 2017](https://doi.org/10.1007/s10915-017-0421-z)
    """
    queries, template = ops.convert_to_tensor(queries), ops.convert_to_tensor(template)
    sigma_neighbor = check_graph(num_neighbors, sigma_neighbor, kernel, template_weight)
    if (
        len(queries.shape) != 2
        or len(template.shape) != 2
        or (
            None not in (queries.shape[1], template.shape[1])
            and queries.shape[1] != template.shape[1]
        )
    ):
        raise ValueError(
            "Arguments `queries` and `template` must have shapes `(q, dimensions)` and "
            f"`(t, dimensions)`. Received: shapes {tuple(queries.shape)}, {tuple(template.shape)}"
        )
    dtype = working_dtype(queries.dtype)
    queries, template = ops.cast(queries, dtype), ops.cast(template, dtype)
    if not backend.is_tracing(template):
        check_distances_exist("template", ops.convert_to_numpy(template))
    values = label_vectors(labels, num_classes, dtype)
    if template.shape[0] == 0 or values.shape[0] != template.shape[0]:
        raise ValueError(
            "Argument `labels` must hold one label for each of at least one template point. "
            f"Received: {values.shape[0]} labels, template of shape {tuple(template.shape)}"
        )
    center = center_of(template)
    queries, is_query = measurable(queries - center)
    template = template - center
    if joint:
        points = ops.concatenate([queries, template])
        is_point = ops.concatenate([is_query, ops.ones_like(template[:, 0], dtype="bool")])
        edges = union_edges(points, num_neighbors, sigma_neighbor, kernel, is_point)
    else:
        radii = template_radii(template, num_neighbors, sigma_neighbor)
        edges = edges_alone(
            queries, template, radii, num_neighbors, sigma_neighbor, kernel, is_query
        )
    return extend(edges, values, is_query, template_weight, joint)


def edges_alone(
    queries: Any,
    template: Any,
    radii: ListRadii,
    num_neighbors: int,
    sigma_neighbor: int,
    kernel: str,
    is_query: Any,
) -> Edges:
    """`edges_to_template` where each query forms a graph with the template by itself."""
    found = nearest_in_two_ways(
        ops.stop_gradient(queries),
        ops.stop_gradient(template),
        num_neighbors,
        ops.stop_gradient(radii.scale()),
        min(template.shape[0] or _MAX_REVERSE, _MAX_REVERSE),
    )
    return edges_to_template(
        queries, template, radii, found, sigma_neighbor, kernel, False, is_query
    )


def extend(
    edges: Edges, values: Any, is_query: Any, template_weight: float | None, joint: bool
) -> Any:
    """u on the queries, which come before the template in the graph, from g on the template.

    NaN where `is_query`, of shape `(q,)`, is False: these do not count.
    """
    num_queries, num_template = ops.shape(is_query)[0], ops.shape(values)[0]
    if template_weight is None:
        own = ops.sum(ops.cast(is_query, values.dtype)) if joint else ops.ones((), values.dtype)
        template_weight = own / ops.cast(num_template, values.dtype)
    unknown = ops.zeros((num_queries, values.shape[1]), values.dtype)
    is_known = ops.arange(num_queries + num_template) >= num_queries
    values = ops.concatenate([unknown, values])
    u = interpolate(edges, values, is_known, num_queries, template_weight, joint)
    return ops.where(is_query[:, None], u, ops.full_like(u, float("nan")))


def check_graph(num_neighbors: Any, sigma_neighbor: Any, kernel: Any, template_weight: Any) -> int:
    """Raises a `ValueError` where the graph's settings are out of their ranges.

    Returns:
        n: `sigma_neighbor`, or half of `num_neighbors`, rounded up, where it is `None`.
    """
    validation.check_count("num_neighbors", num_neighbors)
    if sigma_neighbor is None:
        sigma_neighbor = -(-num_neighbors // 2)
    validation.check_count("sigma_neighbor", sigma_neighbor)
    if sigma_neighbor > num_neighbors:
        raise ValueError(
            "Argument `sigma_neighbor` must be at most `num_neighbors`. Received: "
            f"sigma_neighbor={sigma_neighbor}, num_neighbors={num_neighbors}"
        )
    validation.check_choice("kernel", kernel, KERNELS)
    if template_weight is not None:
        validation.check_number("template_weight", template_weight)
    return int(sigma_neighbor)


def label_vectors(labels: Any, num_classes: int | None, dtype: Any) -> Any:
    """Labels as vectors, shape `(t, num_classes)`."""
    labels = ops.convert_to_tensor(labels)
    if len(labels.shape) == 2 and labels.shape[1] != 1:
        if num_classes not in (None, labels.shape[1]):
            raise ValueError(
                "Argument `num_classes` must be the width of the label vectors. Received: "
                f"num_classes={num_classes}, labels of shape {tuple(labels.shape)}"
            )
        if not backend.is_tracing(labels) and not ops.all(ops.isfinite(labels)):
            raise ValueError(
                "Argument `labels` must hold finite numbers. Received: labels that hold NaN or "
                "infinite values"
            )
        return ops.cast(labels, dtype)
    labels = ops.reshape(labels, (-1,))
    if not backend.is_tracing(labels):
        values = ops.convert_to_numpy(labels)
        largest = int(values.max(initial=-1))
        num_classes = largest + 1 if num_classes is None else num_classes
        if (
            not np.issubdtype(values.dtype, np.integer)
            or values.min(initial=0) < 0
            or (largest >= num_classes)
        ):
            raise ValueError(
                "Argument `labels` must hold integers from 0 to `num_classes - 1`, or vectors. "
                f"Received: labels from {values.min()} to {largest} of dtype {values.dtype}, "
                f"num_classes={num_classes}"
            )
    if num_classes is None:
        raise ValueError(
            "Argument `num_classes` must be given for integer labels while a function is "
            "compiled. Received: num_classes=None"
        )
    return ops.one_hot(labels, num_classes, dtype=dtype)
