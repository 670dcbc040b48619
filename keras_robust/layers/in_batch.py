"""A training batch that serves as its own template, one fold at a time."""

import contextvars
from contextlib import AbstractContextManager
from typing import Any

from keras import ops

from keras_robust.backend.scope import scope
from keras_robust.ops.interpolation import interpolate
from keras_robust.ops.neighbor_graph import measurable, union_edges
from keras_robust.types import Labels, Tensor


class InBatchTemplate:
    """Interpolates the labels of each fold of a training batch from its other folds.

    A `kr.layers.WNLLHead` uses it in training instead of its stored template. The batch is split
    into folds, each with its share of every class. For each fold in turn, its labels are hidden and
    interpolated from the labels of the other folds, on the graph of the whole batch. Label -1 marks
    an unlabeled example, which is a point of the graph but never part of the template.

    Args:
        labels: integers, shape `(batch_size,)`.
        num_folds: int, at least 2.
        in_inference: bool. Whether the head uses this template in inference mode too, which an
            attack on the batch requires. Defaults to `False`.

    The head stores the logits of its linear branch in the attribute `linear_logits`.
    """

    def __init__(self, labels: Labels, num_folds: int, in_inference: bool = False) -> None:
        self.labels, self.num_folds, self.in_inference = labels, num_folds, in_inference
        self.linear_logits: Any = None

    def interpolate(
        self,
        features: Tensor,
        num_classes: int,
        num_neighbors: int,
        sigma_neighbor: int,
        kernel: str,
        template_weight: float | None,
    ) -> Tensor:
        """Computes u for every example, shape `(batch_size, num_classes)`.

        Examples whose features are not finite, or whose squares overflow, get NaN. They do not
        affect the other examples.
        """
        features, is_point = measurable(features)
        count = ops.maximum(ops.sum(ops.cast(is_point, features.dtype)), 1.0)
        center = ops.stop_gradient(ops.sum(features, axis=0) / count)
        # `measurable` has set invalid rows to 0. `union_edges` gives them no edges.
        edges = union_edges(features - center, num_neighbors, sigma_neighbor, kernel, is_point)
        labels = ops.where(is_point, self.labels, -ops.ones_like(self.labels))
        is_labeled = labels >= 0
        values = ops.one_hot(ops.maximum(labels, 0), num_classes, dtype=features.dtype)
        size = ops.shape(features)[0]
        fold = self._folds(labels, num_classes)
        u = ops.zeros_like(values)
        for number in range(self.num_folds):
            is_known = ops.logical_and(is_labeled, fold != number)
            gamma: Any = template_weight
            if gamma is None:
                num_known = ops.sum(ops.cast(is_known, features.dtype))
                gamma = count / ops.maximum(num_known, 1.0) - 1.0
            part = interpolate(edges, values, is_known, size, gamma)
            u = ops.where((fold == number)[:, None], part, u)
        return ops.where(is_point[:, None], u, ops.full_like(u, float("nan")))

    def _folds(self, labels: Labels, num_classes: int) -> Tensor:
        """Deals the examples of each class out to the folds; unlabeled examples go to fold 0."""
        classes = ops.one_hot(labels, num_classes, dtype="int32")
        return ops.sum(classes * ops.cumsum(classes, axis=0), axis=1) % self.num_folds


# A context variable, because the replicas of `MirroredStrategy` share the head. They run in
# interleaved threads, each with the labels of its own part of the batch.
_template: contextvars.ContextVar[InBatchTemplate | None] = contextvars.ContextVar(
    "in_batch_template", default=None
)


def current_template() -> InBatchTemplate | None:
    """Returns the template of the current training step, or `None`."""
    return _template.get()


def template_scope(template: InBatchTemplate) -> AbstractContextManager[InBatchTemplate]:
    """Makes `template` the current template inside the context."""
    return scope(_template, template)
