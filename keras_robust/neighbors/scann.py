"""Approximate nearest neighbours by ScaNN."""

from typing import Any

import keras
import numpy as np

from keras_robust import validation
from keras_robust.neighbors.exact import ExactIndex
from keras_robust.neighbors.points import check_num_neighbors, check_points

# Below this number of points ScaNN's own advice is to compare with all of them.
_MIN_PARTITIONED = 20_000
_TRAINING_SAMPLE = 250_000


class ScannIndex:
    """Finds nearest points approximately, by ScaNN: a tree of partitions, then exact distances.

    The points are partitioned into about `2 sqrt(num_points)` leaves, of which `search_share`
    are looked into, compared by quantized distances, and the best candidates (at least
    `1.5 sqrt(num_points)`) are reordered by exact ones. With fewer than 20,000 points all are
    compared. `recall(queries)` tells how many of the true neighbours it finds.

    Runs on the TensorFlow backend, on Linux, where the package `scann` is installed (the extra
    `scann`, which brings the TensorFlow that it was built for).

    Args:
        points: float array, shape `(num_points, dimensions)`.
        num_neighbors: int. How many neighbours `search` returns unless told. Defaults to `30`.
        search_share: float. Share of the leaves that are looked into. Defaults to `0.05`.

    Raises:
        ValueError: if `points` is not such an array, or an argument is out of its range.
        ImportError: if ScaNN cannot be imported, or on another backend.

    Example:

    >>> import numpy as np, keras_robust as kr
    >>> points = np.random.default_rng(0).normal(size=(1000, 16)).astype("float32")
    >>> index = kr.neighbors.ScannIndex(points)  # doctest: +SKIP
    >>> distances, indices = index.search(points[:5], num_neighbors=3)  # doctest: +SKIP

    Reference:

    - [Guo et al., 2020](https://arxiv.org/abs/1908.10396)
    """

    def __init__(self, points: Any, num_neighbors: int = 30, search_share: float = 0.05) -> None:
        self.points = check_points("points", points, dtype="float32")
        self.num_neighbors = validation.check_count("num_neighbors", num_neighbors)
        self.search_share = validation.check_number(
            "search_share", search_share, exclusive=True, maximum=1.0
        )
        check_num_neighbors(num_neighbors, len(self.points))
        builder = _scann().scann_ops_pybind.builder(self.points, num_neighbors, "squared_l2")
        if len(self.points) >= _MIN_PARTITIONED:
            num_leaves = int(2 * len(self.points) ** 0.5)
            builder = builder.tree(
                num_leaves=num_leaves,
                num_leaves_to_search=max(1, int(num_leaves * search_share)),
                training_sample_size=min(len(self.points), _TRAINING_SAMPLE),
            )
            builder = builder.score_ah(2, anisotropic_quantization_threshold=float("nan"))
            builder = builder.reorder(self._num_candidates(num_neighbors))
        else:
            builder = builder.score_brute_force()
        self._searcher = builder.build()

    def search(
        self, queries: Any, num_neighbors: int | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """The points nearest to each query, in ascending order of the distance.

        Args:
            queries: float array, shape `(num_queries, dimensions)`.
            num_neighbors: int. Defaults to `None`: as the index was made for.

        Returns:
            Squared Euclidean distances and indices, both of shape `(num_queries, num_neighbors)`.
        """
        queries = check_points("queries", queries, self.points.shape[1], "float32")
        count = self.num_neighbors if num_neighbors is None else num_neighbors
        check_num_neighbors(validation.check_count("num_neighbors", count), len(self.points))
        indices, distances = self._searcher.search_batched_parallel(
            queries,
            final_num_neighbors=count,
            pre_reorder_num_neighbors=self._num_candidates(count),
        )
        return np.maximum(distances, 0), indices.astype("int32")

    def recall(self, queries: Any, num_neighbors: int | None = None) -> float:
        """The share of the queries' true nearest neighbours that `search` finds."""
        count = self.num_neighbors if num_neighbors is None else num_neighbors
        found = self.search(queries, count)[1]
        true = ExactIndex(self.points).search(queries, count)[1]
        hits = [len(np.intersect1d(*rows)) for rows in zip(found, true, strict=True)]
        return float(np.sum(hits) / true.size)

    def _num_candidates(self, count: int) -> int:
        """How many points are compared exactly to find the `count` nearest.

        The denser the points lie, the less can quantized distances tell neighbours apart: with a
        fixed number recall would fall as the points grow more.
        """
        return min(max(5 * count, 200, int(1.5 * len(self.points) ** 0.5)), len(self.points))


def _scann() -> Any:
    if keras.backend.backend() != "tensorflow":
        raise ImportError(
            "ScaNN is used on the TensorFlow backend alone: use `neighbors='exact'`, or "
            "`keras_robust.neighbors.ExactIndex`. Received: "
            f"backend={keras.backend.backend()!r}"
        )
    try:
        import scann
    except Exception as error:  # An undefined symbol is none of Python's import errors.
        raise ImportError(
            "ScaNN could not be imported. It comes with `pip install 'keras_robust[scann]'`, on "
            "Linux, with the version of TensorFlow that it was built for: beside another one its "
            f"operations cannot be loaded. The error was: {error}"
        ) from error
    return scann
