"""Validation of the arguments of the indices."""

from typing import Any

import numpy as np
from keras import ops

from keras_robust.ops.nearest import check_distances_exist, dtype_name
from keras_robust.types import Tensor


def check_points(
    name: str, points: Tensor, width: int | None = None, dtype: Any = None
) -> np.ndarray:
    """Converts the points to a float array, shape `(num_points, dimensions)`.

    Its dtype is `dtype`. If that is `None`, it is float64 if the points are in float64 and the
    backend supports it, else float32.
    """
    points = ops.convert_to_numpy(points)
    if points.ndim != 2 or not points.size or width not in (None, points.shape[1]):
        raise ValueError(
            f"Argument `{name}` must have the shape `(num_points, {width or 'dimensions'})`. "
            f"Received: shape {points.shape}"
        )
    if dtype is None:
        is_double = points.dtype == np.float64
        dtype = dtype_name(ops.convert_to_tensor(points[:0])) if is_double else "float32"
    with np.errstate(over="ignore"):
        points = points.astype(dtype)
    check_distances_exist(name, points)
    return points


def check_num_neighbors(count: int, num_points: int) -> None:
    """Raises a `ValueError` if there are fewer points than neighbours."""
    if count > num_points:
        raise ValueError(
            "Argument `num_neighbors` must be at most the number of points in the index, "
            f"{num_points}. Received: num_neighbors={count}"
        )
