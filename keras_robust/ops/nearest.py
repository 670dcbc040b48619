"""Exact search for nearest neighbours."""

from typing import Any

import keras
import numpy as np
from keras import ops

from keras_robust import backend
from keras_robust.types import Labels, Tensor

# The number of points compared with the queries at once, and the size of a group in `smallest`.
_BLOCK, _GROUP = 32768, 16
# The number of queries processed at once.
_MAX_ROWS = 2048
# Squared distances below this share of the squared norms are rounding errors of zero.
_ROUNDING = {"float32": 1e-6, "float64": 1e-14}


def squared_distances(x: Tensor, y: Labels) -> Tensor:
    """Computes `||x_i - y_j||_2^2`, shape `(len(x), len(y))`.

    Distances below the rounding error of the computation are set to exactly 0.
    """
    norms = ops.sum(ops.square(x), axis=1)[:, None] + ops.sum(ops.square(y), axis=1)
    distances = norms - 2 * backend.matmul(x, ops.transpose(y))
    # The comparison is False for NaN, so that NaN stays NaN.
    is_rounding = distances <= _ROUNDING[dtype_name(x)] * norms
    return ops.where(is_rounding, ops.zeros_like(norms), distances)


def has_distances(points: Tensor) -> Tensor:
    """Tests whether each point has finite squared distances to other such points, shape `(rows,)`.

    It does not if a value is NaN, infinite, or so large that squares overflow.
    """
    # ||x - y||^2 is at most 4 times the larger of ||x||^2 and ||y||^2.
    return ops.isfinite(4 * ops.sum(ops.square(points), axis=1))


def check_distances_exist(name: str, points: np.ndarray) -> None:
    """Raises a `ValueError` if squared distances of some points would not be finite."""
    points = points if points.dtype == np.float64 else points.astype("float32", copy=False)
    with np.errstate(over="ignore", invalid="ignore"):
        is_good = np.isfinite(4 * np.einsum("ij,ij->i", points, points))
    if not is_good.all():
        raise ValueError(
            f"Argument `{name}` must hold finite numbers whose squares are also finite in "
            f"{points.dtype}. Received: {name} with {int((~is_good).sum())} rows that hold NaN, "
            "infinite or too large values"
        )


def smallest(values: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Returns the `count` smallest values of each row in ascending order, and their columns.

    A long row is cut into groups. The `count` smallest values lie in the `count` groups with the
    smallest minima, so that only these groups need to be sorted.
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
    queries: Tensor, points: Tensor, count: int, first: Tensor = None, is_point: Tensor = None
) -> tuple[Tensor, Tensor]:
    """Finds the `count` points nearest to each query, in ascending order of the distance.

    Apart from the points themselves, memory does not grow with their number.

    Args:
        queries: tensor, shape `(num_queries, dimensions)`.
        points: tensor, shape `(num_points, dimensions)`.
        count: int.
        first: int. Query i is point `first + i`, which is excluded from its own neighbours.
            Defaults to `None`: the queries are not among the points.
        is_point: bool tensor, shape `(num_points,)`. Points where it is False are excluded.
            Defaults to `None`: all points are included.

    Returns:
        Squared distances and indices, both of shape `(num_queries, count)`. If there are fewer than
        `count` points, the remaining distances are infinite and their indices 0.
    """
    return _in_row_blocks(
        queries,
        first,
        lambda rows, first: _Search(rows, points, first, is_point=is_point).run(count),
    )


def nearest_in_two_ways(
    queries: Tensor, points: Tensor, count: int, scale: Tensor, scaled_count: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Finds the points nearest by distance and those nearest by scaled distance, in one pass.

    The scaled distance is `||x - y||^2 / scale(y)`.

    Returns:
        The two tensors that `nearest` returns, and the same for the scaled distance: squared
        distances, not scaled, and indices, both of shape `(num_queries, scaled_count)`.
    """
    return _in_row_blocks(
        queries,
        None,
        lambda rows, first: _Search(rows, points, first, scale).run(count, scaled_count),
    )


def _in_row_blocks(queries: Tensor, first: Tensor, search: Any) -> Tensor:
    num_rows = queries.shape[0]
    if num_rows is None or num_rows <= _MAX_ROWS:
        return search(queries, first)
    parts = [
        search(queries[row : row + _MAX_ROWS], None if first is None else first + row)
        for row in range(0, num_rows, _MAX_ROWS)
    ]
    return tuple(ops.concatenate(part) for part in zip(*parts, strict=True))


class _Search:
    """Searches the points block by block; arguments as in `nearest` and `nearest_in_two_ways`."""

    def __init__(
        self,
        queries: Tensor,
        points: Tensor,
        first: Tensor,
        scale: Tensor = None,
        is_point: Tensor = None,
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
            # Blocks have equal size, consist of whole groups, and overlap as little as possible.
            size = _GROUP * -(-num_points // (blocks * _GROUP))

            def merge(number: Tensor, found: Tensor) -> Tensor:
                # The last block may overlap the one before it. It leaves out the shared points.
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

    def block(self, counts: Tensor, start: Tensor, size: int | None, begin: Any) -> list[Any]:
        """Searches the `size` points from index `start` on, except those before index `begin`.

        Returns distances and indices, and with a scale also those by scaled distance.
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

    def _rounded(self, distances: Tensor, indices: Tensor) -> Tensor:
        """Sets distances below the rounding error to 0.

        Infinite distances, where there is no point, stay infinite.
        """
        others = ops.take(ops.sum(ops.square(self.points), axis=1), indices)
        is_rounding = distances <= _ROUNDING[dtype_name(distances)] * (self.norms + others)
        return ops.where(is_rounding, ops.zeros_like(distances), distances)


def _smallest_of(distances: Tensor, count: int, missing: int) -> tuple[Tensor, Tensor]:
    if missing:
        distances = ops.pad(distances, [(0, 0), (0, missing)], constant_values=float("inf"))
    values, columns = smallest(distances, count)
    return values, ops.where(values < float("inf"), columns, ops.zeros_like(columns))


def _best(values: Tensor, columns: Tensor, count: int) -> tuple[Tensor, Tensor]:
    negative, places = ops.top_k(-values, count)
    return -negative, ops.take_along_axis(columns, places, axis=1)


def dtype_name(x: Tensor) -> str:
    """Returns the dtype as a string, `"float32"` or `"float64"`."""
    return keras.backend.standardize_dtype(x.dtype)
