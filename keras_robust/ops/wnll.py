"""Weighted nonlocal Laplacian (WNLL): labels interpolated on a graph of neighbours."""

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
from keras_robust.types import Labels, Tensor

# With `joint=False`, the number of edges from template points to a query that are kept.
_MAX_REVERSE = 512


def wnll(
    queries: Tensor,
    template: Tensor,
    labels: Labels,
    num_neighbors: int = 30,
    sigma_neighbor: int | None = None,
    kernel: str = "gaussian",
    template_weight: float | None = None,
    joint: bool = True,
    num_classes: int | None = None,
) -> Tensor:
    """Interpolates the labels of template points to queries on a graph of nearest neighbours.

    Solves, for each query x,

        sum_y (w(x, y) + w(y, x)) (u(x) - u(y)) + gamma sum_{y in X^te} w(y, x) (u(x) - g(y)) = 0

    with `u = g`, the labels, on the template `X^te`. The weight `w(x, y)` is
    `exp(-||x - y||^2 / sigma(x)^2)` if y is one of the m nearest neighbours of x among all N points
    (template and queries), and 0 otherwise. `sigma(x)` is the distance from x to its n-th
    neighbour. No point is its own neighbour. For one-hot labels the solution is a probability
    vector: `u >= 0`, and it sums to 1.

    u is differentiable in `queries`, `template` and one-hot `labels`. The gradient is exact as long
    as the lists of neighbours do not change. Where they change, u jumps. The gradient requires one
    more solution of the linear system.

    Args:
        queries: float tensor, shape `(q, dimensions)`.
        template: float tensor, shape `(t, dimensions)`, of the same dtype.
        labels: labels of the template, g: integers, shape `(t,)`, or one-hot or any other vectors,
            shape `(t, num_classes)`.
        num_neighbors: int. m. If there are fewer other points, all of them are neighbours. Defaults
            to `30`.
        sigma_neighbor: int. n, at most m. Defaults to `None`: half of m, rounded up.
        kernel: `"gaussian"` (as in the papers) or `"quartic"`, `exp(-(d / sigma)^4)` (as in their
            code). Defaults to `"gaussian"`.
        template_weight: float. gamma. Defaults to `None`: `N / t - 1`.
        joint: bool. If `True`, all queries are points of one graph, and the u of a query depends on
            the other queries. If `False`, each query forms a separate graph with the template.
            Defaults to `True`.
        num_classes: int. It must be given for integer labels while a function is compiled. Defaults
            to `None`: one more than the largest label.

    Returns:
        u, shape `(q, num_classes)`, in float64 if `queries` are, else in float32. A component of
        the
        graph that contains no template point gets the mean of the template's labels. A class that
        the template lacks gets 0. A query that holds NaN, infinite values, or values so large that
        squares overflow gets NaN, and does not affect the other queries.

    Raises:
        ValueError: if an argument is out of its range, or shapes do not match; if the template
            holds NaN, infinite values, or values so large that squares overflow, or label vectors
            hold NaN or infinite values. While a function is compiled the values are unknown, and
            every u is NaN instead.

    Example:

    >>> import keras, numpy as np, keras_robust as kr
    >>> template = np.array([[0.0, 0.0], [0.0, 1.0], [4.0, 0.0], [4.0, 1.0]], "float32")
    >>> queries = np.array([[1.0, 0.5], [3.0, 0.5]], "float32")
    >>> u = kr.ops.wnll(queries, template, [0, 0, 1, 1], num_neighbors=2, sigma_neighbor=1)
    >>> keras.ops.convert_to_numpy(u).argmax(axis=1).tolist()
    [0, 1]

    The memory of the gradient grows with `(q + t) * m * dimensions`. For more than 3,000 queries
    the system is solved by conjugate gradients, to a relative accuracy of 1e-6 (1e-12 in float64).

    Departures from the papers:

    - The points are tied to the mean label by 2e-6 of their edges' weight (1e-13 in float64).
      Otherwise the system would be singular for a component without a template point.
    - Where the n-th neighbour is at distance 0, as among duplicates, sigma is the distance to the
      nearest neighbour at a positive distance.
    - With `joint=False`, only the 512 edges with the largest weights are kept from template points
      to a query.

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
    queries: Tensor,
    template: Tensor,
    radii: ListRadii,
    num_neighbors: int,
    sigma_neighbor: int,
    kernel: str,
    is_query: Tensor,
) -> Edges:
    """Builds `edges_to_template` where each query forms a separate graph with the template."""
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
    edges: Edges, values: Tensor, is_query: Tensor, template_weight: float | None, joint: bool
) -> Tensor:
    """Computes u on the queries, which precede the template in the graph, from g on the template.

    Queries where `is_query`, of shape `(q,)`, is False get NaN and do not count for the default
    `template_weight`.
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
    """Raises a `ValueError` if a setting of the graph is out of its range.

    Returns:
        n: `sigma_neighbor`, or half of `num_neighbors`, rounded up, if it is `None`.
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


def label_vectors(labels: Labels, num_classes: int | None, dtype: Any) -> Tensor:
    """Converts labels to vectors, shape `(t, num_classes)`."""
    labels = ops.convert_to_tensor(labels)
    if len(labels.shape) == 2 and labels.shape[1] != 1:
        if num_classes not in (None, labels.shape[1]):
            raise ValueError(
                "Argument `num_classes` must be the width of the label vectors. Received: "
                f"num_classes={num_classes}, labels of shape {tuple(labels.shape)}"
            )
        if not backend.is_tracing(labels) and not ops.all(ops.isfinite(labels)):
            raise ValueError(
                "Argument `labels` must hold finite numbers. Received: labels with NaN or infinite "
                "values"
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
