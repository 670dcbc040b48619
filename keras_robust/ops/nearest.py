"""Nearest neighbours, exactly."""

from typing import Any

import keras
from keras import ops

# Points compared with the queries at once, and how many of them form a group in `smallest`.
_BLOCK, _GROUP = 16384, 16
_MAX_ROWS = 4096
# Squared distances below this share of the squared norms are rounding errors of zero.
_ROUNDING = {"float32": 1e-6, "float64": 1e-14}


def squared_distances(x: Any, y: Any) -> Any:
    """`||x_i - y_j||_2^2`, shape `(len(x), len(y))`: exactly 0 where rounding cannot tell."""
    norms = ops.sum(ops.square(x), axis=1)[:, None] + ops.sum(ops.square(y), axis=1)
    distances = norms - 2 * ops.matmul(x, ops.transpose(y))
    return ops.where(distances > _ROUNDING[dtype_name(x)] * norms, distances, ops.zeros_like(norms))


def smallest(values: Any, count: int) -> tuple[Any, Any]:
    """The `count` smallest values of each row in ascending order, and their columns.

    The row is cut into groups. The `count` smallest values lie in the `count` groups with the
    smallest minima, so that only these need to be sorted.
    """
    width = values.shape[1]
    if width is None or width < 8 * count * _GROUP**0.5:
        negative, columns = ops.top_k(-values, count)
        return -negative, columns
    num_groups = -(-width // _GROUP)
    padding = [(0, 0), (0, num_groups * _GROUP - width)]
    values = ops.pad(values, padding, constant_values=float("inf"))
    # Group g holds the columns g, g + num_groups, ...: reducing then runs along the memory.
    minima = ops.min(ops.reshape(values, (-1, _GROUP, num_groups)), axis=1)
    _, groups = ops.top_k(-minima, count)
    columns = groups[:, :, None] + num_groups * ops.arange(_GROUP, dtype="int32")
    columns = ops.reshape(columns, (-1, count * _GROUP))
    negative, places = ops.top_k(-ops.take_along_axis(values, columns, axis=1), count)
    return -negative, ops.take_along_axis(columns, places, axis=1)


def nearest(
    queries: Any, points: Any, count: int, first: Any = None, scale: Any = None
) -> tuple[Any, Any]:
    """The `count` points nearest to each query, in ascending order of the distance.

    Memory does not grow with the number of points, beyond the points themselves.

    Args:
        queries: tensor, shape `(num_queries, dimensions)`.
        points: tensor, shape `(num_points, dimensions)`.
        count: int.
        first: int. Query i is point `first + i`, which is left out. Defaults to `None`: the
            queries are not among the points.
        scale: tensor, shape `(num_points,)`, by which the squared distances to the points are
            divided. Defaults to `None`.

    Returns:
        Squared distances and indices, both of shape `(num_queries, count)`. Where there are fewer
        points, the distances are infinite and the indices 0.
    """
    num_rows, num_points = queries.shape[0], points.shape[0]
    if num_rows is not None and num_rows > _MAX_ROWS:
        parts = [
            nearest(
                queries[row : row + _MAX_ROWS],
                points,
                count,
                None if first is None else first + row,
                scale,
            )
            for row in range(0, num_rows, _MAX_ROWS)
        ]
        return ops.concatenate([part[0] for part in parts]), ops.concatenate(
            [part[1] for part in parts]
        )
    search = _BlockSearch(queries, points, count, first, scale)
    if num_points is None or num_points <= _BLOCK:
        return search.block(0, num_points, 0)

    def merge(number: Any, found: tuple[Any, Any]) -> tuple[Any, Any]:
        # The last block overlaps the one before it, whose points are left out in it.
        begin = number * _BLOCK
        new = search.block(ops.minimum(begin, num_points - _BLOCK), _BLOCK, begin)
        values, columns = (ops.concatenate(pair, axis=1) for pair in zip(found, new, strict=True))
        negative, places = ops.top_k(-values, count)
        return -negative, ops.take_along_axis(columns, places, axis=1)

    return ops.fori_loop(1, -(-num_points // _BLOCK), merge, search.block(0, _BLOCK, 0))


class _BlockSearch:
    """The search among the points of one block after the other; arguments as of `nearest`."""

    def __init__(self, queries: Any, points: Any, count: int, first: Any, scale: Any) -> None:
        self.queries, self.points, self.count = queries, points, count
        self.first, self.scale = first, scale

    def block(self, start: Any, size: int | None, begin: Any) -> tuple[Any, Any]:
        """Among the `size` points from number `start` on, without those before number `begin`."""
        block = self.points
        if size is not None:
            block = ops.slice(block, (start, 0), (size, block.shape[1]))
        distances = squared_distances(self.queries, block)
        if self.scale is not None:
            scale = self.scale if size is None else ops.slice(self.scale, (start,), (size,))
            distances = distances / scale
        index = start + ops.arange(ops.shape(block)[0], dtype="int32")
        distances = distances + ops.cast(
            ops.where(index < begin, float("inf"), 0.0), distances.dtype
        )
        if self.first is not None:
            rows = self.first + ops.arange(ops.shape(self.queries)[0], dtype="int32")
            is_self = index[None] == rows[:, None]
            distances = ops.where(is_self, ops.full_like(distances, float("inf")), distances)
        missing = self.count if size is None else max(self.count - size, 0)
        if missing:
            distances = ops.pad(distances, [(0, 0), (0, missing)], constant_values=float("inf"))
        values, columns = smallest(distances, self.count)
        return values, ops.where(values < float("inf"), columns + start, ops.zeros_like(columns))


def dtype_name(x: Any) -> str:
    """`"float32"` or `"float64"`."""
    return keras.backend.standardize_dtype(x.dtype)
