"""What the indices accept."""

from typing import Any

import numpy as np
from keras import ops


def check_points(name: str, points: Any, width: int | None = None) -> np.ndarray:
    """The points as a float array, shape `(num_points, dimensions)`."""
    points = ops.convert_to_numpy(points)
    if points.ndim != 2 or not points.size or width not in (None, points.shape[1]):
        raise ValueError(
            f"Argument `{name}` must have the shape `(num_points, {width or 'dimensions'})`. "
            f"Received: shape {points.shape}"
        )
    if not np.isfinite(points).all():
        raise ValueError(
            f"Argument `{name}` must hold finite numbers. Received: {name} with "
            f"{int((~np.isfinite(points)).sum())} values that are NaN or infinite"
        )
    return points if points.dtype == np.float64 else points.astype("float32")


def check_num_neighbors(count: int, num_points: int) -> None:
    """Raises a `ValueError` if more neighbours are asked for than there are points."""
    if count > num_points:
        raise ValueError(
            "Argument `num_neighbors` must be at most the number of points in the index, "
            f"{num_points}. Received: num_neighbors={count}"
        )
