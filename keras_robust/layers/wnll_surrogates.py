"""Surrogates that attacks differentiate instead of the output of a WNLL head."""

import contextlib
from collections.abc import Iterator
from typing import Any

from keras import ops

from keras_robust.model.patching import replaced
from keras_robust.ops.nearest import squared_distances
from keras_robust.ops.neighbor_graph import center_of, measurable, own_sigma
from keras_robust.types import Tensor


class WNLLSurrogates:
    """Adds surrogates to `kr.layers.WNLLHead`, see `kr.attacks.WNLLSurrogate`."""

    @contextlib.contextmanager
    def attacked_as(self: Any, surrogate: str | None = None) -> Iterator[bool]:
        """Makes the layer compute a surrogate for an attack to differentiate, inside the context.

        Args:
            surrogate: `"linear"`, `"straight_through"`, `"exact"` or `"soft_neighbors"`, see
                `kr.attacks.WNLLSurrogate`. Defaults to `None`: the head's own `gradient`.

        Yields:
            Whether the surrogate's values differ from the layer's output.
        """
        surrogate = surrogate or self._gradient
        calls = {"linear": self._linear_call, "soft_neighbors": self._soft_call}
        if surrogate in calls:
            with replaced(self, "call", calls[surrogate]):
                yield True
        else:
            with replaced(self, "_gradient", surrogate):
                yield False

    def _linear_call(self: Any, inputs: Tensor, training: bool | None = None) -> Tensor:
        return self._linear_logits(self._buffered(inputs))

    def _soft_call(self: Any, inputs: Tensor, training: bool | None = None) -> Tensor:
        """Computes `log sum_{y of class c} exp(-d^2 / sigma^2)` over the whole template.

        It has no lists of neighbours, so its value does not jump.
        """
        features, template = self._buffered(inputs), self._buffered(self.template.features)
        center = center_of(template)
        features, is_row = measurable(features - center)
        distances = squared_distances(features, template - center)
        count = min(self.sigma_neighbor, self.template_size)
        nearest_few = -ops.top_k(-ops.stop_gradient(distances), count)[0]
        scores = -distances / own_sigma(nearest_few, count)
        labels = ops.convert_to_tensor(self.template.labels)
        lowest = ops.full_like(scores, -1e9)
        columns = [
            ops.logsumexp(ops.where(labels == label, scores, lowest), axis=1)
            for label in range(self.num_classes)
        ]
        outputs = ops.stack(columns, axis=1)
        return ops.where(is_row[:, None], outputs, ops.full_like(outputs, float("nan")))
