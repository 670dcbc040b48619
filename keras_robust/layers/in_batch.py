"""A training batch that serves as its own template, part by part."""

import contextvars
from contextlib import AbstractContextManager
from typing import Any

from keras import ops

from keras_robust.backend.scope import scope
from keras_robust.ops.interpolation import interpolate
from keras_robust.ops.neighbor_graph import measurable, union_edges


class InBatchTemplate:
    """The labels of a batch on its way through a `kr.layers.WNLLHead` in training.

    The batch is cut into folds, each with its share of every class. In turn each fold's labels
    are hidden and interpolated from the others', on the graph of the whole batch. Label -1 marks
    an unlabeled example: it is a point of every graph and a template in none.

    Args:
        labels: integers, shape `(batch_size,)`.
        num_folds: int, at least 2.
        in_inference: bool. Whether the head uses it in inference mode too, for an attack on the
            batch. Defaults to `False`.

    The head leaves the linear branch's logits in `linear_logits`.
    """

    def __init__(self, labels: Any, num_folds: int, in_inference: bool = False) -> None:
        self.labels, self.num_folds, self.in_inference = labels, num_folds, in_inference
        self.linear_logits: Any = None

    def interpolate(
        self,
        features: Any,
        num_classes: int,
        num_neighbors: int,
        sigma_neighbor: int,
        kernel: str,
        template_weight: float | None,
    ) -> Any:
        """u for every example, shape `(batch_size, num_classes)`.

        NaN where features are not finite; the other examples get what they get without it.
        """
        features, is_point = measurable(features)
        count = ops.maximum(ops.sum(ops.cast(is_point, features.dtype)), 1.0)
        center = ops.stop_gradient(ops.sum(features, axis=0) / count)
        # Those that are no points are at a place like any other, and have no edges.
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

    def _folds(self, labels: Any, num_classes: int) -> Any:
        """The examples of each class, one after the other, are dealt out to the folds."""
        classes = ops.one_hot(labels, num_classes, dtype="int32")
        return ops.sum(classes * ops.cumsum(classes, axis=0), axis=1) % self.num_folds


# A context variable, because the replicas of `MirroredStrategy` share the head and run in threads
# that interleave, each with the labels of its own part of the batch.
_template: contextvars.ContextVar[InBatchTemplate | None] = contextvars.ContextVar(
    "in_batch_template", default=None
)


def current_template() -> InBatchTemplate | None:
    """The template of the training step under way, if there is one."""
    return _template.get()


def template_scope(template: InBatchTemplate) -> AbstractContextManager[InBatchTemplate]:
    """Makes `template` the current one."""
    return scope(_template, template)
