"""Nearest neighbours, exactly."""

from typing import Any

import keras
import numpy as np
from keras import ops

from keras_robust import backend

# Points compared with the queries at once, and how many of them form a group in `smallest`.
_BLOCK, _GROUP = 32768, 16
_MAX_ROWS = 2048
# Squared distances below this share of the squared norms are rounding errors of zero.
_ROUNDING = {"float32": 1e-6, "float64": 1e-14}


def squared_distances(x: Any, y: Any) -> Any:
    """`||x_i - y_j||_2^2`, shape `(len(x), len(y))`: exactly 0 where rounding cannot tell."""
    norms = ops.sum(ops.square(x), axis=1)[:, None] + ops.sum(ops.square(y), axis=1)
    distances = norms - 2 * backend.matmul(x, ops.transpose(y))
    # In this order NaN stays NaN.
    is_rounding = distances <= _ROUNDING[dtype_name(x)] * norms
    return ops.where(is_rounding, ops.zeros_like(norms), distances)


def has_distances(points: Any) -> Any:
    """Whether each point's squared distances to others of this kind are finite, shape `(rows,)`.

    Not where a value is NaN, infinite, or so large that squares overflow.
    """
    # ||x - y||^2 is at most 4 times the larger of ||x||^2 and ||y||^2.
    return ops.isfinite(4 * ops.sum(ops.square(points), axis=1))


def check_distances_exist(name: str, points: np.ndarray) -> None:
    """Raises a `ValueError` for points some of whose squared distances would not be finite."""
    points = points if points.dtype == np.float64 else points.astype("float32", copy=False)
    with np.errstate(over="ignore", invalid="ignore"):
        is_good = np.isfinite(4 * np.einsum("ij,ij->i", points, points))
    if not is_good.all():
        raise ValueError(
            f"Argument `{name}` must hold finite numbers, whose squares are finite in "
            f"{points.dtype}, too. Received: {name} with {int((~is_good).sum())} rows that hold "
            "NaN, infinite or larger values"
        )


def smallest(values: Any, count: int) -> tuple[Any, Any]:
    """The `count` smallest values of each row in ascending order, and their columns.

    A long row is cut into groups. The `count` smallest values lie in the `count` groups with the
    smallest minima, so that only these need to be sorted.
    """
    width = values.shape[1]
    if width is None or width < 3 * count * _GROUP:
        negative, columns = ops.top_k(-values, count)
        return -negative, columns
    num_groups = -(-width // _GROUP)
    padding = [(0, 0), (0, num_groups * _GROUP - width)]
    values = ops.pad(values, padding, constant_values=float("inf"))
    values = ops.reshape(values, (-1, _GROUP))
    minima = ops.reshape(ops.min(values, axis=1), (-1, num_groups))
    _, groups = ops.top_k(-minima, count)
    rows = num_groups * ops.arange(ops.shape(groups)[0], dtype="int32")[:, None]
    members = ops.reshape(ops.take(values, rows + groups, axis=0), (-1, count * _GROUP))
    negative, places = ops.top_k(-members, count)
    groups = ops.take_along_axis(groups, places // _GROUP, axis=1)
    return -negative, groups * _GROUP + places % _GROUP


def nearest(
    queries: Any, points: Any, count: int, first: Any = None, is_point: Any = None
) -> tuple[Any, Any]:
    """The `count` points nearest to each query, in ascending order of the distance.

    Memory does not grow with the number of points, beyond the points themselves.

    Args:
        queries: tensor, shape `(num_queries, dimensions)`.
        points: tensor, shape `(num_points, dimensions)`.
        count: int.
        first: int. Query i is point `first + i`, which is left out. Defaults to `None`: the
            queries are not among the points.
        is_point: bool tensor, shape `(num_points,)`: the others are no one's neighbours. Defaults
            to `None`: all are points.

    Returns:
        Squared distances and indices, both of shape `(num_queries, count)`. Where there are fewer
        points, the distances are infinite and the indices 0.
    """
    return _in_row_blocks(
        queries,
        first,
        lambda rows, first: _Search(rows, points, first, is_point=is_point).run(count),
    )


def nearest_in_two_ways(
    queries: Any, points: Any, count: int, scale: Any, scaled_count: int
) -> tuple[Any, Any, Any, Any]:
    """The nearest points, and those nearest in `||x - y||^2 / scale(y)`, from one pass over all.

    Returns:
        What `nearest` returns, and the same of the second kind: squared distances, unscaled, and
        indices, shape `(num_queries, scaled_count)`.
    """
    return _in_row_blocks(
        queries,
        None,
        lambda rows, first: _Search(rows, points, first, scale).run(count, scaled_count),
    )


def _in_row_blocks(queries: Any, first: Any, search: Any) -> Any:
    num_rows = queries.shape[0]
    if num_rows is None or num_rows <= _MAX_ROWS:
        return search(queries, first)
    parts = [
        search(queries[row : row + _MAX_ROWS], None if first is None else first + row)
        for row in range(0, num_rows, _MAX_ROWS)
    ]
    return tuple(ops.concatenate(part) for part in zip(*parts, strict=True))


class _Search:
    """The search among the points of one block after the other; arguments as of the functions."""

    def __init__(
        self, queries: Any, points: Any, first: Any, scale: Any = None, is_point: Any = None
    ) -> None:
        self.queries, self.points, self.first, self.scale = queries, points, first, scale
        self.is_point = is_point
        self.norms = ops.sum(ops.square(queries), axis=1, keepdims=True)
        self.extended = ops.concatenate([queries, ops.ones_like(self.norms)], axis=1)

    def run(self, *counts: int) -> tuple[Any, ...]:
        num_points = self.points.shape[0]
        if num_points is None or num_points <= _BLOCK:
            found = self.block(counts, 0, num_points, 0)
        else:
            blocks = -(-num_points // _BLOCK)
            # Blocks of one size, whole groups, that overlap as little as possible.
            size = _GROUP * -(-num_points // (blocks * _GROUP))

            def merge(number: Any, found: Any) -> Any:
                # The last block overlaps the one before it, whose points are left out in it.
                begin = number * size
                start = ops.minimum(begin, num_points - size)
                new = self.block(counts, start, size, begin)
                both = [ops.concatenate(pair, axis=1) for pair in zip(found, new, strict=True)]
                pairs = zip(both[::2], both[1::2], counts, strict=True)
                return [part for pair in pairs for part in _best(*pair)]

            found = ops.fori_loop(1, blocks, merge, self.block(counts, 0, size, 0))
        parts = list(found)
        if self.scale is not None:
            parts[2] = parts[2] * ops.take(self.scale, parts[3])
        for place in range(0, len(parts), 2):
            parts[place] = self._rounded(parts[place], parts[place + 1])
        return tuple(parts)

    def block(self, counts: Any, start: Any, size: int | None, begin: Any) -> list[Any]:
        """Among the `size` points from number `start` on, without those before number `begin`.

        Distances and indices, of the two kinds where there is a scale.
        """
        block = self.points
        if size is not None:
            block = ops.slice(block, (start, 0), (size, block.shape[1]))
        index = start + ops.arange(ops.shape(block)[0], dtype="int32")
        norms = ops.sum(ops.square(block), axis=1)
        is_missing = index < begin
        if self.is_point is not None:
            is_point = self.is_point
            is_point = is_point if size is None else ops.slice(is_point, (start,), (size,))
            is_missing = ops.logical_or(is_missing, ops.logical_not(is_point))
        norms = ops.where(is_missing, ops.full_like(norms, float("inf")), norms)
        # ||y||^2 - 2 x y in one matrix product; ||x||^2 is the same for all points.
        extended = ops.concatenate([-2 * block, norms[:, None]], axis=1)
        distances = backend.matmul(self.extended, ops.transpose(extended))
        if self.first is not None:
            rows = self.first + ops.arange(ops.shape(self.queries)[0], dtype="int32")
            is_self = index[None] == rows[:, None]
            distances = ops.where(is_self, ops.full_like(distances, float("inf")), distances)
        missing = max(counts) if size is None else max(max(counts) - size, 0)
        found = _smallest_of(distances, counts[0], missing)
        parts = [found[0] + self.norms, found[1] + start]
        if self.scale is not None:
            scale = self.scale if size is None else ops.slice(self.scale, (start,), (size,))
            found = _smallest_of((distances + self.norms) * (1 / scale), counts[1], missing)
            parts += [found[0], found[1] + start]
        return parts

    def _rounded(self, distances: Any, indices: Any) -> Any:
        """0 where rounding cannot tell; infinite where there is no point."""
        others = ops.take(ops.sum(ops.square(self.points), axis=1), indices)
        is_rounding = distances <= _ROUNDING[dtype_name(distances)] * (self.norms + others)
        return ops.where(is_rounding, ops.zeros_like(distances), distances)


def _smallest_of(distances: Any, count: int, missing: int) -> tuple[Any, Any]:
    if missing:
        distances = ops.pad(distances, [(0, 0), (0, missing)], constant_values=float("inf"))
    values, columns = smallest(distances, count)
    return values, ops.where(values < float("inf"), columns, ops.zeros_like(columns))


def _best(values: Any, columns: Any, count: int) -> tuple[Any, Any]:
    negative, places = ops.top_k(-values, count)
    return -negative, ops.take_along_axis(columns, places, axis=1)


def dtype_name(x: Any) -> str:
    """`"float32"` or `"float64"`."""
    return keras.backend.standardize_dtype(x.dtype)
