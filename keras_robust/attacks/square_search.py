"""Random proposals of the Square attack for each norm."""

import math
from typing import Any

import numpy as np
from keras import ops

from keras_robust import backend
from keras_robust.ops.balls import projection
from keras_robust.types import Images, Seed, Tensor

# The queries, of 10,000, after which the fraction of the image that a square covers is halved.
_HALVED_AT = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
_NUM_TILES = 5
# The axes of height and width.
_SPATIAL_AXES = (1, 2)


def image_shape(x: Images) -> tuple[int, int, int]:
    """Returns height, width and channels of each example; a vector is an image of one row."""
    if len(x.shape) == 2:
        return 1, x.shape[1], 1
    *height, width, channels = x.shape[1:]
    return math.prod(height), width, channels


def window_sides(
    num_queries: int, initial_fraction: float, height: int, width: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the sides of the windows, shape `(num_levels, 2)`, and each query's level.

    A window is a square, unless the image is too low or too narrow for it. It then keeps its area.
    """
    query = np.arange(num_queries) * 10_000 // num_queries
    levels = np.searchsorted(_HALVED_AT, query, side="left")
    area = initial_fraction * 0.5 ** np.arange(len(_HALVED_AT) + 1) * height * width
    side = np.maximum(np.sqrt(area), 1)
    rows = np.where(side > width, area / width, np.minimum(side, height))
    columns = np.where(side > height, area / height, np.minimum(side, width))
    sides = np.stack([np.minimum(rows, height), np.minimum(columns, width)], axis=1)
    return np.round(sides).astype("int32"), levels.astype("int32")


class _Search:
    """Base class of the searches: images with channels last, and random windows in them.

    Args:
        x: tensor, shape `(batch_size, ...)`. The original images.
        epsilon: float. Radius of the ball.
        norm: string. Norm of the ball.
        bounds: pair of floats. Valid range of `x`.
        num_queries: int. Number of proposals, which determines when windows shrink.
        initial_fraction: float. Fraction of the image that the first windows cover.
        data_format: `"channels_last"` or `"channels_first"`, the order of the axes of `x`. Ignored
            for examples with fewer than 3 axes.
    """

    def __init__(
        self,
        x: Images,
        epsilon: float,
        norm: str,
        bounds: tuple[float, float],
        num_queries: int,
        initial_fraction: float,
        data_format: str,
    ) -> None:
        self.is_moved = data_format == "channels_first" and len(x.shape) > 3
        x = ops.moveaxis(x, 1, -1) if self.is_moved else x
        self.shape_with_channels_last = ops.shape(x)
        self.shape = (ops.shape(x)[0], *image_shape(x))
        self.x, self.epsilon = ops.reshape(x, self.shape), epsilon
        self.free: Any = None
        if len(getattr(bounds[0], "shape", ())):
            bounds = self.from_model(bounds[0]), self.from_model(bounds[1])
            self.free = bounds[1] > bounds[0]
        self.project = projection(self.x, epsilon, norm, bounds)
        height, width, self.channels = self.shape[1:]
        sides, levels = window_sides(num_queries, initial_fraction, height, width)
        self.all_sides = sides
        self.sides, self.levels = ops.convert_to_tensor(sides), ops.convert_to_tensor(levels)

    def from_model(self, x: Images) -> Tensor:
        """Converts images in the format of the model's input to that of the search."""
        return ops.reshape(ops.moveaxis(x, 1, -1) if self.is_moved else x, self.shape)

    def to_model(self, z: Tensor) -> Tensor:
        """Converts images in the format of the search to that of the model's input."""
        z = ops.reshape(z, self.shape_with_channels_last)
        return ops.moveaxis(z, -1, 1) if self.is_moved else z

    def signs(self, shape: tuple[int, ...], seed: Seed) -> Tensor:
        """Draws signs, -1 or 1, of shape `(batch_size, *shape)`."""
        draws = backend.uniform((self.shape[0], *shape), seed, -1.0, 1.0, self.x.dtype)
        return ops.where(draws < 0, -ops.ones_like(draws), ops.ones_like(draws))

    def corners(self, side: Tensor, seed: Seed) -> tuple[Tensor, Tensor]:
        """Draws top and left of windows with the given sides, shape `(batch_size, 1, 1, 1)`."""
        draws = backend.uniform((self.shape[0], 2), seed, 0.0, 1.0, "float32")
        first, last = self._corners_to_draw(side)
        corner = first + ops.cast(draws * ops.cast(last - first + 1, "float32"), "int32")
        corner = ops.reshape(ops.minimum(corner, last), (-1, 2, 1, 1, 1))
        return corner[:, 0], corner[:, 1]

    def _corners_to_draw(self, side: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the first and last corner to draw from, shape `(2,)` or `(batch_size, 2)`.

        If only a part of an image may change, windows lie inside the smallest rectangle around this
        part, or cover it.
        """
        last = ops.convert_to_tensor(self.shape[1:3], dtype="int32") - side
        if self.free is None:
            return ops.zeros_like(last), last
        ends = [self._ends(axis) for axis in (0, 1)]
        begin, end = (ops.stack(places, axis=1) for places in zip(*ends, strict=True))
        end = end + 1 - side
        low, high = ops.minimum(begin, end), ops.maximum(begin, end)
        return ops.clip(low, 0, last), ops.clip(high, 0, last)

    def _ends(self, axis: int) -> tuple[Tensor, Tensor]:
        """Returns the first and last row, or column, with a value that may change."""
        there = ops.cast(ops.any(self.free, axis=(2 - axis, 3)), "int32")
        last = self.shape[1 + axis] - 1 - ops.argmax(ops.flip(there, axis=1), axis=1)
        return ops.cast(ops.argmax(there, axis=1), "int32"), ops.cast(last, "int32")

    def window(self, side: Tensor, corner: tuple[Tensor, Tensor]) -> Tensor:
        """Returns a mask of the window's free values, shape `(batch_size, height, width, ...)`."""
        row, column = (self.places(axis) - corner[axis] for axis in (0, 1))
        rows = ops.logical_and(row >= 0, row < side[0])
        inside = ops.logical_and(rows, ops.logical_and(column >= 0, column < side[1]))
        return inside if self.free is None else ops.logical_and(inside, self.free)

    def places(self, axis: int) -> Tensor:
        """Returns 0, 1, ... along the height or the width, broadcastable to images."""
        shape = (1, -1, 1, 1) if axis == 0 else (1, 1, -1, 1)
        return ops.reshape(ops.arange(self.shape[1 + axis], dtype="int32"), shape)


class LinfSearch(_Search):
    """Algorithm 2: sets a square of the image to `x + epsilon` or `x - epsilon`."""

    def initial(self, seed: Seed) -> Tensor:
        """Returns images with vertical stripes."""
        stripes = self.signs((1, self.shape[2], self.channels), seed)
        return self.project(self.x + self.epsilon * stripes)

    def proposal(self, z: Tensor, query: Tensor, seed: Seed) -> Tensor:
        side = ops.take(self.sides, ops.take(self.levels, query), axis=0)
        signs = self.signs((1, 1, self.channels), backend.fold_in(seed, 0))
        inside = self.window(side, self.corners(side, backend.fold_in(seed, 1)))
        return ops.where(inside, self.project(self.x + self.epsilon * signs), z)


class L2Search(_Search):
    """Algorithm 3: moves the mass of one window to another."""

    order = 2

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        # Before the projection, perturbations are longer than the final ones by this factor.
        self.excess = 1
        size = self.shape[1:3]
        table = np.zeros((len(self.all_sides), 2, *size))
        for level, (rows, columns) in enumerate(self.all_sides):
            for transposed in (0, 1):
                pattern = split_pattern(rows, columns, bool(transposed), self.order)
                table[level, transposed, :rows, :columns] = pattern
        self.table = ops.convert_to_tensor(table.reshape(-1), dtype=self.x.dtype)

    def initial(self, seed: Seed) -> Tensor:
        """Returns images with tiles of random signs."""
        height, width = self.shape[1:3]
        tiles = [min(_NUM_TILES, height), min(_NUM_TILES, width)]
        sides = [height // tiles[0], width // tiles[1]]
        left = [height - tiles[0] * sides[0], width - tiles[1] * sides[1]]
        pattern = split_pattern(sides[0], sides[1], False, self.order)
        pattern = np.tile(pattern, tiles)[..., None]
        signs = self.signs((*tiles, self.channels), seed)
        signs = ops.repeat(ops.repeat(signs, sides[0], axis=1), sides[1], axis=2)
        nu = signs * ops.convert_to_tensor(pattern, dtype=self.x.dtype)
        nu = ops.pad(nu, [(0, 0), *((n // 2, n - n // 2) for n in left), (0, 0)])
        if self.free is not None:
            nu = ops.where(self.free, nu, ops.zeros_like(nu))
        return self.project(self.x + self.epsilon * self.excess * self._unit(nu, (1, 2, 3)))

    def proposal(self, z: Tensor, query: Tensor, seed: Seed) -> Tensor:
        level = ops.take(self.levels, query)
        side = ops.take(self.sides, level, axis=0)
        corner = self.corners(side, backend.fold_in(seed, 0))
        first = self.window(side, corner)
        second = self.window(side, self.corners(side, backend.fold_in(seed, 1)))

        nu = z - self.x
        zero = ops.zeros_like(nu)
        masses = ops.abs(nu) ** self.order
        unused = self.epsilon**self.order - _total(masses, (1, 2, 3))
        unused = ops.maximum(unused, 0) / self.channels
        either = ops.logical_or(first, second)
        available = _total(ops.where(either, masses, zero)) + unused

        signs = self.signs((1, 1, self.channels), backend.fold_in(seed, 2))
        new = signs * self._pattern(level, corner, backend.fold_in(seed, 3))
        new = ops.where(first, new, zero)
        new = self._unit(new + self._unit(ops.where(first, nu, zero)))
        new = self.excess * available ** (1 / self.order) * new
        return self.project(self.x + ops.where(first, new, ops.where(second, zero, nu)))

    def _pattern(self, level: Tensor, corner: tuple[Tensor, Tensor], seed: Seed) -> Any:
        """Returns the pattern at the window's place, in one of two random orientations."""
        height, width = self.shape[1:3]
        row = (self.places(0) - corner[0]) % height
        column = (self.places(1) - corner[1]) % width
        transposed = ops.cast(self.signs((1, 1, 1), seed) > 0, "int32")
        return ops.take(self.table, ((level * 2 + transposed) * height + row) * width + column)

    def _unit(self, values: Tensor, axis: tuple[int, ...] = _SPATIAL_AXES) -> Tensor:
        """Divides values by their norm over the given axes, by default in each channel."""
        length = _total(ops.abs(values) ** self.order, axis) ** (1 / self.order)
        return values / ops.where(length > 0, length, ops.ones_like(length))


class L1Search(L2Search):
    """The L1 version of `L2Search`. The projection keeps only the largest values."""

    order = 1

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.excess = self.channels


def _total(values: Tensor, axis: tuple[int, ...] = _SPATIAL_AXES) -> Tensor:
    return ops.sum(values, axis=axis, keepdims=True)


def pattern(rows: int, columns: int, power: float = 2) -> np.ndarray:
    """Returns `eta(r, s) = sum_{k=0}^{M(r, s)} 1 / (n + 1 - k)^power` (eq. 2)."""
    n = max(rows, columns) // 2
    r = abs(np.arange(rows) - rows // 2)[:, None]
    s = abs(np.arange(columns) - columns // 2)[None]
    sums = np.cumsum(1 / (n + 1.0 - np.arange(n + 1)) ** power)
    return sums[n - np.maximum(r, s)]


def split_pattern(rows: int, columns: int, transposed: bool, order: int) -> np.ndarray:
    """Returns `eta` in one half and `-eta` in the other, with an L1 or L2 norm of 1."""
    if transposed:
        return split_pattern(columns, rows, False, order).T
    half, power = columns // 2, 4 / order
    halves = [pattern(rows, half, power), -pattern(rows, columns - half, power)]
    both = np.concatenate(halves, axis=1)
    return both / np.linalg.norm(both.ravel(), order)


SEARCHES = {"linf": LinfSearch, "l2": L2Search, "l1": L1Search}
