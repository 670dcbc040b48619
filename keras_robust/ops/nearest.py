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


def nearest(queries: Any, points: Any, count: int, first: Any = None) -> tuple[Any, Any]:
    """The `count` points nearest to each query, in ascending order of the distance.

    Args:
        queries: tensor, shape `(num_queries, dimensions)`.
        points: tensor, shape `(num_points, dimensions)`.
        count: int.
        first: int. Query i is point `first + i`, which is left out. Defaults to `None`: the
            queries are not among the points.

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
            )
            for row in range(0, num_rows, _MAX_ROWS)
        ]
        return tuple(ops.concatenate(part) for part in zip(*parts, strict=True))
    if num_points is None or num_points <= _BLOCK:
        return _nearest_in_block(queries, points, count, first, 0)

    num_blocks = -(-num_points // _BLOCK)
    last = num_points - _BLOCK

    def merge(number: Any, found: tuple[Any, Any]) -> tuple[Any, Any]:
        # The last block overlaps the one before it, whose points are left out in it.
        start = ops.minimum(number * _BLOCK, last)
        block = ops.slice(points, (start, 0), (_BLOCK, points.shape[1]))
        new = _nearest_in_block(queries, block, count, first, start, number * _BLOCK)
        values = ops.concatenate([found[0], new[0]], axis=1)
        columns = ops.concatenate([found[1], new[1]], axis=1)
        negative, places = ops.top_k(-values, count)
        return -negative, ops.take_along_axis(columns, places, axis=1)

    rows = ops.sum(ops.zeros_like(queries), axis=1, keepdims=True)
    nothing = ops.tile(rows + float("inf"), (1, count))
    return ops.fori_loop(
        0, num_blocks, merge, (nothing, ops.cast(0 * ops.tile(rows, (1, count)), "int32"))
    )


def _nearest_in_block(
    queries: Any, block: Any, count: int, first: Any, start: Any, begin: Any = 0
) -> tuple[Any, Any]:
    """Among the points of a block, which begins with point `start`; those before `begin` not."""
    distances = squared_distances(queries, block)
    index = start + ops.arange(ops.shape(block)[0], dtype="int32")
    is_out = index[None] < begin
    if first is not None:
        rows = first + ops.arange(ops.shape(queries)[0], dtype="int32")
        is_out = ops.logical_or(is_out, index[None] == rows[:, None])
    distances = ops.where(is_out, ops.full_like(distances, float("inf")), distances)
    size = block.shape[0]
    missing = count if size is None else max(count - size, 0)
    if missing:
        distances = ops.pad(distances, [(0, 0), (0, missing)], constant_values=float("inf"))
    values, columns = smallest(distances, count)
    return values, ops.where(values < float("inf"), columns + start, ops.zeros_like(columns))


def dtype_name(x: Any) -> str:
    """`"float32"` or `"float64"`."""
    return keras.backend.standardize_dtype(x.dtype)
