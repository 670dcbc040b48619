"""Approximate nearest-neighbour search by ScaNN."""

from typing import Any

import keras
import numpy as np

from keras_robust import validation
from keras_robust.neighbors.exact import ExactIndex
from keras_robust.neighbors.points import check_num_neighbors, check_points
from keras_robust.types import Tensor

# Below this number of points ScaNN's documentation recommends comparing with all of them.
_MIN_PARTITIONED = 20_000
_TRAINING_SAMPLE = 250_000


class ScannIndex:
    """Finds nearest points approximately by ScaNN.

    The points are partitioned into about `2 sqrt(num_points)` leaves. A search compares the points
    in a share of the leaves, `search_share`, by quantized distances, and then reorders the best
    candidates (at least `1.5 sqrt(num_points)`) by exact distances. With fewer than 20,000 points,
    all points are compared exactly. `recall(queries)` measures the share of true neighbours found.

    The index requires the TensorFlow backend, Linux, and the package `scann` (the extra `scann`,
    which installs the version of TensorFlow that it was built for).

    Args:
        points: float array, shape `(num_points, dimensions)`.
        num_neighbors: int. The number of neighbours that `search` returns by default. Defaults to
            `30`.
        search_share: float. Share of the leaves that are searched. Defaults to `0.05`.

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

    def __init__(self, points: Tensor, num_neighbors: int = 30, search_share: float = 0.05) -> None:
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
        self, queries: Tensor, num_neighbors: int | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Finds the points nearest to each query, in ascending order of the distance.

        Args:
            queries: float array, shape `(num_queries, dimensions)`.
            num_neighbors: int. Defaults to `None`: the `num_neighbors` of the index.

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

    def recall(self, queries: Tensor, num_neighbors: int | None = None) -> float:
        """Measures the share of the queries' true nearest neighbours that `search` finds."""
        count = self.num_neighbors if num_neighbors is None else num_neighbors
        found = self.search(queries, count)[1]
        true = ExactIndex(self.points).search(queries, count)[1]
        hits = [len(np.intersect1d(*rows)) for rows in zip(found, true, strict=True)]
        return float(np.sum(hits) / true.size)

    def _num_candidates(self, count: int) -> int:
        """Returns how many points are compared exactly to find the `count` nearest.

        The number grows with the number of points: the denser the points lie, the less well
        quantized distances distinguish neighbours, and with a fixed number the recall would
        decrease.
        """
        return min(max(5 * count, 200, int(1.5 * len(self.points) ** 0.5)), len(self.points))


def _scann() -> Any:
    if keras.backend.backend() != "tensorflow":
        raise ImportError(
            "ScaNN requires the TensorFlow backend. Use `neighbors='exact'` or "
            "`keras_robust.neighbors.ExactIndex` instead. Received: "
            f"backend={keras.backend.backend()!r}"
        )
    try:
        import scann
    except Exception as error:  # An undefined symbol does not raise an `ImportError`.
        raise ImportError(
            "ScaNN could not be imported. On Linux, install it by "
            "`pip install 'keras_robust[scann]'`, which also installs the version of TensorFlow "
            "that it was built for. Its operations cannot be loaded with another version. "
            f"The error was: {error}"
        ) from error
    return scann
