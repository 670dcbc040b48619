"""What attacks differentiate instead of what a WNLL head computes."""

import contextlib
from collections.abc import Iterator
from typing import Any

from keras import ops

from keras_robust.model.patching import replaced
from keras_robust.ops.nearest import squared_distances
from keras_robust.ops.neighbor_graph import center_of, measurable, own_sigma


class WNLLSurrogates:
    """A part of `kr.layers.WNLLHead`: its surrogates, see `kr.attacks.WNLLSurrogate`."""

    @contextlib.contextmanager
    def attacked_as(self: Any, surrogate: str | None = None) -> Iterator[bool]:
        """Inside, the layer computes what an attack is to differentiate instead of its output.

        Args:
            surrogate: `"linear"`, `"straight_through"`, `"exact"` or `"soft_neighbors"`, see
                `kr.attacks.WNLLSurrogate`. Defaults to `None`: as the head's own `gradient` says.

        Yields:
            Whether this is something else than the layer's output.
        """
        surrogate = surrogate or self._gradient
        calls = {"linear": self._linear_call, "soft_neighbors": self._soft_call}
        if surrogate in calls:
            with replaced(self, "call", calls[surrogate]):
                yield True
        else:
            with replaced(self, "_gradient", surrogate):
                yield False

    def _linear_call(self: Any, inputs: Any, training: bool | None = None) -> Any:
        return self._linear_logits(self._buffered(inputs))

    def _soft_call(self: Any, inputs: Any, training: bool | None = None) -> Any:
        """log sum_{y of the class} exp(-d^2 / sigma^2), over all of the template: no list jumps."""
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
