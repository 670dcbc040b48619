"""The labeled points that a WNLL head interpolates from."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_robust import backend
from keras_robust.layers.template import (
    check_distances,
    check_features,
    check_template_labels,
    choose_template,
    sparse_with_unlabeled,
)
from keras_robust.neighbors import ScannIndex
from keras_robust.ops.nearest import nearest_in_two_ways
from keras_robust.ops.neighbor_graph import (
    Reach,
    edges_to_template,
    reach_of_lists,
    template_reach,
)
from keras_robust.ops.wnll import extend, wnll

# Up to so many points the graph of template and queries is built anew in each call.
_MAX_UNION = 2000
# With more: how many times m candidates are searched for that may have an edge to a query.
_REVERSE_PER_NEIGHBOR = {"exact": 4, "scann": 2}
Transform = Callable[[Any], Any]


class WNLLTemplate(keras.layers.Layer):
    """Points and their labels in weights of fixed size, and the graph that they form with queries.

    What is kept is what enters the head. The head's buffer block is handed to the methods as
    `transform`: the graph is that of the transformed points.

    Args:
        size: int. How many labeled points there are.
        num_classes: int.
        num_neighbors, sigma_neighbor, kernel, template_weight: as of `kr.ops.wnll`.
        unlabeled_size: int. How many unlabeled points there are beside them.
        neighbors: `"exact"` or `"scann"`.
        num_batches: int. Into how many parts the labeled points are split, each of which forms a
            graph with the queries by itself.
        **kwargs: as for any Keras layer.
    """

    def __init__(
        self,
        size: int,
        num_classes: int,
        num_neighbors: int,
        sigma_neighbor: int,
        kernel: str,
        template_weight: float | None,
        unlabeled_size: int,
        neighbors: str,
        num_batches: int,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.size, self.num_classes, self.unlabeled_size = size, num_classes, unlabeled_size
        self.num_neighbors, self.sigma_neighbor = num_neighbors, sigma_neighbor
        self.kernel, self.template_weight = kernel, template_weight
        self.neighbors, self.num_batches = neighbors, num_batches
        self._indices: dict[int, ScannIndex] = {}

    def build(self, input_shape: Any) -> None:
        def add(name: str, shape: tuple[int, ...], value: Any, dtype: Any = None) -> Any:
            start = keras.initializers.Constant(value)
            # Not in half precision, which squared distances exceed.
            return self.add_weight(
                name=name, shape=shape, initializer=start, dtype=dtype, trainable=False,
                autocast=False,
            )  # fmt: skip

        width = input_shape[-1]
        self.features = add("features", (self.size, width), 0.0)
        self.labels = add("labels", (self.size,), -1, "int32")
        if self.unlabeled_size:
            self.unlabeled = add("unlabeled", (self.unlabeled_size, width), 0.0)
        if self.has_lists:
            self.reach = add("reach", (3, self.size), 0.0, "float32")
        self.built = True

    @property
    def is_filled(self) -> bool:
        """Whether it holds labeled points."""
        return bool(self.built and (ops.convert_to_numpy(self.labels) >= 0).all())

    @property
    def has_lists(self) -> bool:
        """Whether the points' lists are kept, rather than made anew in each call."""
        return self.size // self.num_batches > _MAX_UNION or self.neighbors == "scann"

    def check_labels(self, labels: np.ndarray) -> None:
        """Raises a `ValueError` for integer labels that make no template."""
        check_template_labels(labels, self.num_classes, self.size, self.unlabeled_size)

    def checked(
        self, features: Any, labels: Any, distances: Any = None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """All as arrays, labels as integers; a `ValueError` where they make no template."""
        features = ops.convert_to_numpy(features).astype(self.variable_dtype)
        labels = sparse_with_unlabeled(ops.convert_to_numpy(labels), self.num_classes)
        check_features(features, labels, self.features.shape[1] if self.built else None)
        self.check_labels(labels)
        if distances is not None:
            distances = ops.convert_to_numpy(distances)
            check_distances(distances.shape, (self.size, self.num_neighbors), len(labels))
        return features, labels, distances

    def fill(
        self,
        features: np.ndarray,
        labels: np.ndarray,
        seed: int,
        distances: np.ndarray | None,
        transform: Transform,
    ) -> None:
        """Takes points from those given, which are `checked`; arguments as of `WNLLHead.adapt`."""
        rows = choose_template(labels, self.size, self.num_classes, seed)
        # Dealt out to the batches, so that each has its share of every class.
        rows = rows[np.argsort(labels[rows], kind="stable")]
        rows = rows.reshape(-1, self.num_batches).T.reshape(-1)
        self.features.assign(features[rows])
        self.labels.assign(labels[rows].astype("int32"))
        if self.unlabeled_size:
            others = np.random.default_rng(seed).permutation(np.flatnonzero(labels < 0))
            self.unlabeled.assign(features[np.sort(others[: self.unlabeled_size])])
        self._indices.clear()
        if self.has_lists and distances is not None:
            reach = reach_of_lists(distances[rows], self.sigma_neighbor)
            self.reach.assign(ops.stack(reach))
        elif self.has_lists:
            self.reach.assign(self._find_reach(transform))
        if self.neighbors == "scann":
            for number in range(self.num_batches):
                self._scann_index(number, transform)

    def answers(self, queries: Any, joint: bool, transform: Transform) -> list[Any]:
        """u on the queries, which are transformed already, by each batch of the template."""
        num_queries = ops.shape(queries)[0]
        if self.unlabeled_size and joint:
            queries = ops.concatenate([queries, transform(self.unlabeled)])
        points = transform(self.features)
        answers = []
        for number in range(self.num_batches):
            part = self._part(number)
            values = ops.one_hot(self.labels[part], self.num_classes, dtype=points.dtype)
            if self.has_lists:
                u = self._from_lists(queries, points[part], values, number, joint, transform)
            else:
                u = wnll(
                    queries, points[part], values, self.num_neighbors, self.sigma_neighbor,
                    self.kernel, self.template_weight, joint,
                )  # fmt: skip
            answers.append(u[:num_queries])
        return answers

    def load_own_variables(self, store: Any) -> None:
        super().load_own_variables(store)
        self._indices.clear()

    def _from_lists(
        self, queries: Any, points: Any, values: Any, number: int, joint: bool, transform: Transform
    ) -> Any:
        center = ops.stop_gradient(ops.mean(points, axis=0))
        queries, points = queries - center, points - center
        part = self._part(number)
        rows = ops.cast(ops.convert_to_tensor(self.reach), points.dtype)
        reach = Reach(*(rows[row, part] for row in range(3)))
        found = self._search(number, queries, points, reach, transform)
        edges = edges_to_template(
            queries, points, reach, found, self.sigma_neighbor, self.kernel, joint
        )
        return extend(edges, values, ops.shape(queries)[0], self.template_weight, joint)

    def _search(
        self, number: int, queries: Any, points: Any, reach: Reach, transform: Transform
    ) -> Any:
        """What `nearest_in_two_ways` finds; by ScaNN, the second are the nearest, too."""
        m, count = self.num_neighbors, self._num_candidates
        queries, points = ops.stop_gradient(queries), ops.stop_gradient(points)
        if self.neighbors == "exact":
            return nearest_in_two_ways(queries, points, m, ops.stop_gradient(reach.scale()), count)
        distances, indices = backend.host_call(
            lambda x: self._scann_index(number, transform).search(x, count),
            queries,
            (("float32", count), ("int32", count)),
        )
        return distances[:, :m], indices[:, :m], distances, indices

    def _scann_index(self, number: int, transform: Transform) -> ScannIndex:
        if number not in self._indices:
            points = ops.convert_to_numpy(transform(self.features)[self._part(number)])
            self._indices[number] = ScannIndex(points - points.mean(axis=0), self._num_candidates)
        return self._indices[number]

    def _find_reach(self, transform: Transform) -> Any:
        """Each point's reach, for each batch by itself."""
        points = transform(self.features)
        parts = [
            ops.stack(
                template_reach(
                    part - ops.mean(part, axis=0), self.num_neighbors, self.sigma_neighbor
                )
            )
            for part in (points[self._part(n)] for n in range(self.num_batches))
        ]
        return ops.concatenate(parts, axis=1)

    def _part(self, number: int) -> slice:
        size = self.size // self.num_batches
        return slice(number * size, (number + 1) * size)

    @property
    def _num_candidates(self) -> int:
        """How many points are considered for an edge to a query."""
        size = self.size // self.num_batches
        return min(_REVERSE_PER_NEIGHBOR[self.neighbors] * self.num_neighbors, size)
