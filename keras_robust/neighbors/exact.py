"""Exact nearest-neighbour search."""

import numpy as np
from keras import ops

from keras_robust import backend, validation
from keras_robust.neighbors.points import check_num_neighbors, check_points
from keras_robust.ops.nearest import nearest
from keras_robust.types import Tensor

_BATCH = 1024


class ExactIndex:
    """Finds the nearest of a set of points by comparing each query with all of them.

    Squared distances come from matrix products with blocks of points, of which only the nearest
    points are kept. Apart from the points themselves, memory is therefore bounded whatever their
    number.

    Args:
        points: float array, shape `(num_points, dimensions)`.

    Raises:
        ValueError: if `points` is not such an array, or holds values that are NaN, infinite or so
            large that a square overflows. `search` raises it for such queries, for queries of other
            dimensions, and if there are fewer points than neighbours.

    Example:

    >>> import numpy as np, keras_robust as kr
    >>> points = np.array([[0.0, 0.0], [1.0, 0.0], [5.0, 0.0]], "float32")
    >>> distances, indices = kr.neighbors.ExactIndex(points).search(points[:1], num_neighbors=2)
    >>> indices.tolist(), distances.tolist()
    ([[0, 1]], [[0.0, 1.0]])
    """

    def __init__(self, points: Tensor) -> None:
        self.points = check_points("points", points)
        # Far from the origin, rounding errors would dominate squared distances from products.
        self._center = self.points.mean(axis=0)

    def search(self, queries: Tensor, num_neighbors: int) -> tuple[np.ndarray, np.ndarray]:
        """Finds the points nearest to each query, in ascending order of the distance.

        Args:
            queries: float array, shape `(num_queries, dimensions)`.
            num_neighbors: int. The number of points to return for each query.

        Returns:
            Squared Euclidean distances and indices, both of shape `(num_queries, num_neighbors)`.
        """
        queries = check_points("queries", queries, self.points.shape[1], self.points.dtype)
        queries = queries - self._center
        check_num_neighbors(
            validation.check_count("num_neighbors", num_neighbors), len(self.points)
        )
        search = backend.compiled(
            self, num_neighbors, lambda x, points: nearest(x, points, num_neighbors)
        )
        points = ops.convert_to_tensor(self.points - self._center)
        batch = min(_BATCH, len(queries))
        # All batches have the same size, so that the search is compiled only once.
        padded = np.resize(queries, (-(-len(queries) // batch) * batch, queries.shape[1]))
        found = [search(padded[row : row + batch], points) for row in range(0, len(padded), batch)]
        distances, indices = (
            np.concatenate([ops.convert_to_numpy(part[place]) for part in found])[: len(queries)]
            for place in (0, 1)
        )
        return distances, indices
