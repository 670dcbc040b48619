"""The template of a WNLL head: the labeled points that it interpolates from."""

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
    choose_unlabeled,
    sparse_with_unlabeled,
)
from keras_robust.neighbors import ScannIndex
from keras_robust.ops.nearest import nearest, nearest_in_two_ways
from keras_robust.ops.neighbor_graph import (
    Edges,
    ListRadii,
    center_of,
    edges_of_union,
    edges_to_template,
    measurable,
    radii_of_lists,
    recorded_distances,
    template_radii,
)
from keras_robust.ops.precision import working_dtype
from keras_robust.ops.wnll import edges_alone, extend
from keras_robust.types import Labels, Shape, Tensor

# Up to this number of points in a batch, the results are exactly those of `kr.ops.wnll`.
_MAX_UNION = 2000
# With more points, or ScaNN: the number of candidates for an edge to a query, as a multiple of m.
_REVERSE_PER_NEIGHBOR = {"exact": 4, "scann": 2}
Transform = Callable[[Any], Any]


class WNLLTemplate(keras.layers.Layer):
    """Stores labeled points in weights of fixed size and builds their graph with queries.

    The weights hold inputs of the head. The methods receive the head's buffer block as the argument
    `transform`, and the graph is that of the transformed points.

    The weights also hold each point's list of neighbours within the template. For a small template
    (up to 2,000 points in a batch, with exact search) they hold the full lists, and a copy of the
    buffer block's weights from which the lists were computed. If the block's weights have changed
    since, the lists are computed again in each call. For a large template, or with ScaNN, they hold
    only the `ListRadii`, which do not follow the block.

    Args:
        size: int. The number of labeled points.
        num_classes: int. The number of classes.
        num_neighbors, sigma_neighbor, kernel, template_weight: as in `kr.ops.wnll`.
        unlabeled_size: int. The number of additional unlabeled points.
        neighbors: `"exact"` or `"scann"`.
        num_batches: int. The number of batches into which the labeled points are split. Each of
            them forms a separate graph with the queries.
        units: int. The width of the buffer block, or `None` if there is none.
        **kwargs: Base layer keyword arguments (e.g. `name` and `dtype`).
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
        units: int | None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.size, self.num_classes, self.unlabeled_size = size, num_classes, unlabeled_size
        self.num_neighbors, self.sigma_neighbor = num_neighbors, sigma_neighbor
        self.kernel, self.template_weight = kernel, template_weight
        self.neighbors, self.num_batches, self.units = neighbors, num_batches, units
        self._indices: dict[int, ScannIndex] = {}

    def build(self, input_shape: Shape) -> None:
        width = input_shape[-1]
        # Squared distances overflow in half precision.
        full = working_dtype(self.compute_dtype)
        self.features = self._add("features", (self.size, width), 0.0)
        self.labels = self._add("labels", (self.size,), -1, "int32")
        if self.unlabeled_size:
            self.unlabeled = self._add("unlabeled", (self.unlabeled_size, width), 0.0)
        if self.keeps_radii_only:
            self.radii = self._add("radii", (3, self.size), 0.0, "float32")
        else:
            shape = (self.size, self._list_length)
            self.distances = self._add("distances", shape, 0.0, full)
            self.indices = self._add("indices", shape, 0, "int32")
            if self.units is not None:
                # Autocast like the block itself, so that the two compare equal.
                shape = (width, self.units)
                self.block_kernel = self._add("block_kernel", shape, 0.0, autocast=True)
                self.block_bias = self._add("block_bias", (self.units,), 0.0, autocast=True)
        self.built = True

    def _add(
        self, name: str, shape: tuple[int, ...], value: Any, dtype: Any = None,
        autocast: bool = False,
    ) -> Any:  # fmt: skip
        return self.add_weight(
            name=name, shape=shape, initializer=keras.initializers.Constant(value), dtype=dtype,
            trainable=False, autocast=autocast,
        )  # fmt: skip

    @property
    def is_filled(self) -> bool:
        """Whether the template has been filled."""
        return bool(self.built and (ops.convert_to_numpy(self.labels) >= 0).all())

    @property
    def keeps_radii_only(self) -> bool:
        """Whether only the radii of the points' lists are stored, not the lists."""
        return self._batch_size > _MAX_UNION or self.neighbors == "scann"

    def check_labels(self, labels: np.ndarray) -> None:
        """Raises a `ValueError` if the integer labels cannot form a template."""
        check_template_labels(labels, self.num_classes, self.size, self.unlabeled_size)

    def chosen(self, labels: np.ndarray, seed: int) -> np.ndarray:
        """Returns the rows of the points that `fill` takes."""
        labeled = choose_template(labels, self.size, seed)
        return np.concatenate([labeled, choose_unlabeled(labels, self.unlabeled_size, seed)])

    def checked(
        self, features: Tensor, labels: Labels, distances: Tensor = None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """Converts the arguments to arrays, with integer labels.

        Raises a `ValueError` if they cannot form a template.
        """
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
        block: list[Any],
    ) -> None:
        """Draws the template from points that `checked` returned; arguments as in `WNLLHead.adapt`.

        `block` holds the weights of `transform`.
        """
        rows = choose_template(labels, self.size, seed)
        # Deal the points out to the batches, so that each batch has its share of every class.
        rows = rows[np.argsort(labels[rows], kind="stable")]
        rows = rows.reshape(-1, self.num_batches).T.reshape(-1)
        self.features.assign(features[rows])
        self.labels.assign(labels[rows].astype("int32"))
        if self.unlabeled_size:
            self.unlabeled.assign(features[choose_unlabeled(labels, self.unlabeled_size, seed)])
        self._indices.clear()
        if not self.keeps_radii_only:
            self._keep_lists(transform, block)
        elif distances is not None:
            radii = radii_of_lists(distances[rows], self.sigma_neighbor)
            self.radii.assign(ops.stack(radii))
        else:
            self.radii.assign(self._find_radii(transform))
        if self.neighbors == "scann":
            for number in range(self.num_batches):
                self._scann_index(number, transform)

    def answers(
        self, queries: Tensor, joint: bool, transform: Transform, block: list[Any]
    ) -> list[Any]:
        """Computes u on queries, already transformed, once for each batch of the template."""
        num_queries = ops.shape(queries)[0]
        if self.unlabeled_size and joint:
            queries = ops.concatenate([queries, transform(self.unlabeled)])
        points = transform(self.features)
        is_current = self._is_current(block)
        answers = []
        for number in range(self.num_batches):
            part = points[self._part(number)]
            center = center_of(part)
            values = ops.one_hot(
                self.labels[self._part(number)], self.num_classes, dtype=points.dtype
            )
            visitors, is_query = measurable(queries - center)
            edges = self._edges(
                visitors, part - center, number, joint, is_query, is_current, transform
            )
            u = extend(edges, values, is_query, self.template_weight, joint)
            answers.append(u[:num_queries])
        return answers

    def load_own_variables(self, store: Any) -> None:
        has_lists = self.built and not self.keeps_radii_only
        lists = [self.distances, self.indices, *self._block] if has_lists else []
        if lists and len(store.keys()) == len(self.variables) - len(lists):
            # The file was saved by a version that did not store lists.
            known = {id(variable) for variable in lists}
            others = [variable for variable in self.variables if id(variable) not in known]
            for number, variable in enumerate(others):
                variable.assign(store[str(number)])
            for variable in self._block:
                variable.assign(ops.zeros(variable.shape, variable.dtype))
            if not self._block and self.is_filled:
                self._keep_lists(lambda points: points, [])
        else:
            super().load_own_variables(store)
        self._indices.clear()

    def _edges(
        self,
        queries: Tensor,
        points: Tensor,
        number: int,
        joint: bool,
        is_query: Tensor,
        is_current: Tensor,
        transform: Transform,
    ) -> Edges:
        """Builds the edges between the queries and the points of one batch of the template."""
        m, n = self.num_neighbors, self.sigma_neighbor
        if self.keeps_radii_only:
            fixed, fixed_points = ops.stop_gradient(queries), ops.stop_gradient(points)
            rows = ops.cast(ops.convert_to_tensor(self.radii), points.dtype)
            radii = ListRadii(*(rows[row, self._part(number)] for row in range(3)))
            found = self._search(number, fixed, fixed_points, radii, transform)
            return edges_to_template(queries, points, radii, found, n, self.kernel, joint, is_query)
        lists = self._lists(points, number, is_current)
        if joint:
            return edges_of_union(queries, points, lists, n, self.kernel, is_query)
        radii = radii_of_lists(lists, n)
        return edges_alone(queries, points, radii, m, n, self.kernel, is_query)

    def _lists(self, points: Tensor, number: int, is_current: Tensor) -> Any:
        """Returns each point's squared distances to its neighbours in its batch."""
        part = self._part(number)
        kept = (
            ops.cast(ops.convert_to_tensor(self.distances)[part], points.dtype),
            ops.convert_to_tensor(self.indices)[part],
        )
        lists = kept[0]
        if is_current is not None:
            branches = [lambda: self._found_lists(points), lambda: kept]
            found = backend.switch(ops.cast(is_current, "int32"), branches)
            lists = recorded_distances(points, points, *found)
        missing = self.num_neighbors - self._list_length
        return ops.pad(lists, [(0, 0), (0, missing)], constant_values=float("inf"))

    def _found_lists(self, points: Tensor) -> tuple[Tensor, Tensor]:
        fixed = ops.stop_gradient(points)
        return nearest(fixed, fixed, self._list_length, 0)

    def _keep_lists(self, transform: Transform, block: list[Any]) -> None:
        """Computes and stores each point's list, separately for each batch."""
        points = transform(self.features)
        parts = [points[self._part(number)] for number in range(self.num_batches)]
        found = [self._found_lists(part - center_of(part)) for part in parts]
        for variable, number in ((self.distances, 0), (self.indices, 1)):
            variable.assign(ops.concatenate([lists[number] for lists in found]))
        for variable, weight in zip(self._block, block, strict=True):
            # A copy: `fit` on JAX donates each variable's memory, which must not be shared.
            variable.assign(ops.copy(ops.convert_to_tensor(weight)))

    def _is_current(self, block: list[Any]) -> Tensor:
        """Tests whether the lists were computed from the buffer block's current weights.

        Returns `None` if there is no block.
        """
        if not self._block:
            return None
        pairs = [
            (ops.convert_to_tensor(kept), ops.convert_to_tensor(weight))
            for kept, weight in zip(self._block, block, strict=True)
        ]
        if any(kept.shape != weight.shape for kept, weight in pairs):
            return ops.convert_to_tensor(False)
        same = [ops.all(kept == ops.cast(weight, kept.dtype)) for kept, weight in pairs]
        return ops.logical_and(*same)

    def _search(
        self, number: int, queries: Tensor, points: Tensor, radii: ListRadii, transform: Transform
    ) -> Any:
        """Returns the result of `nearest_in_two_ways`.

        With ScaNN, the second pair holds nearest points too, not those nearest by scaled distance.
        """
        m, count = self.num_neighbors, self._num_candidates
        if self.neighbors == "exact":
            return nearest_in_two_ways(queries, points, m, ops.stop_gradient(radii.scale()), count)
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

    def _find_radii(self, transform: Transform) -> Tensor:
        """Computes each point's radii, separately for each batch."""
        points = transform(self.features)
        parts = [
            ops.stack(
                template_radii(
                    part - ops.mean(part, axis=0), self.num_neighbors, self.sigma_neighbor
                )
            )
            for part in (points[self._part(n)] for n in range(self.num_batches))
        ]
        return ops.concatenate(parts, axis=1)

    def _part(self, number: int) -> slice:
        return slice(number * self._batch_size, (number + 1) * self._batch_size)

    @property
    def _block(self) -> list[Any]:
        """The copy of the buffer block's weights from which the lists were computed."""
        return (
            []
            if self.keeps_radii_only or self.units is None
            else [self.block_kernel, self.block_bias]
        )

    @property
    def _list_length(self) -> int:
        """m, or the number of other points in the batch if that is smaller."""
        return max(min(self.num_neighbors, self._batch_size - 1), 1)

    @property
    def _batch_size(self) -> int:
        return self.size // self.num_batches

    @property
    def _num_candidates(self) -> int:
        """How many points are considered for an edge to a query."""
        return min(_REVERSE_PER_NEIGHBOR[self.neighbors] * self.num_neighbors, self._batch_size)
