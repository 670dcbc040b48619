"""DeepFool whose perturbation can be differentiated in the model's weights.

It is computed twice. `choose` runs the steps and notes what is discrete in them: between which two
classes each step goes, and which examples still need it. `perturbation` then repeats the steps
with these given, one gradient each, and is smooth almost everywhere.
"""

import dataclasses
import math
from typing import Any

from keras import ops

from keras_robust import backend
from keras_robust.model.classifier import Classifier
from keras_robust.ops import of_class, other_classes, per_example, per_example_where

# What squared lengths are at least, so that square roots have a gradient.
_SMALLEST_SQUARE = 1e-30


@dataclasses.dataclass(frozen=True)
class Choices:
    """What is discrete in the steps.

    Args:
        source: int32, the class `a` that each step leaves, shape `(num_steps, batch_size)`.
        target: int32, the class `b` that it goes to, of the same shape.
        is_taken: bool, whether the example needs the step, of the same shape.
        is_correct: bool, which examples are classified correctly, shape `(batch_size,)`.
    """

    source: Any
    target: Any
    is_taken: Any
    is_correct: Any


@dataclasses.dataclass(frozen=True)
class DifferentiableDeepFool:
    """The steps of DeepFool without bounds.

        r_i = |f(x_i)| / ||w||_q * d(w),    f = z_b - z_a,    w = grad f(x_i) + gradient_offset
        x_{i+1} = x_i + (1 + overshoot) r_i

    Of an example that is classified correctly, `a` is its class and `b` the class whose
    linearised boundary is nearest, until `a` is not predicted any more. Of one that is
    misclassified, `b` is its class and `a` the most likely other one, until `b` is predicted. For
    the L2 norm `q = 2` and `d(w) = w / ||w||_2`; for L-infinity `q = 1` and `d(w) = sign(w)`.
    """

    norm: str
    num_steps: int
    overshoot: float
    num_candidates: int
    gradient_offset: float
    from_logits: bool

    def choose(self, classifier: Classifier, x: Any, y: Any) -> Choices:
        """Runs the steps; `x` is float32, `y` int32 labels of shape `(batch_size,)`."""
        logits = classifier.logits(x, self.from_logits)
        is_correct = ops.cast(ops.argmax(logits, axis=-1), y.dtype) == y
        candidates = other_classes(logits, y)[:, : self.num_candidates - 1]
        sign = ops.where(is_correct, 1.0, -1.0)

        def differences(z: Any) -> Any:
            return ops.take_along_axis(z, candidates, axis=1) - ops.expand_dims(of_class(z, y), 1)

        def differences_at(x: Any) -> Any:
            return differences(classifier.logits(x, self.from_logits))

        def is_unfinished(values: Any) -> Any:
            lead = ops.max(values, axis=1)
            return ops.where(is_correct, lead <= 0, lead > 0)

        def unfinished(i: Any, x_i: Any, active: Any, chosen: Any, is_taken: Any) -> Any:
            return ops.logical_and(i < self.num_steps, ops.any(active))

        def step(i: Any, x_i: Any, active: Any, chosen: Any, is_taken: Any) -> tuple[Any, ...]:
            values, normals = backend.value_and_jacobian(differences_at, x_i)
            index = ops.where(
                is_correct, self._nearest(values, normals), ops.argmax(values, axis=1)
            )
            picked = ops.one_hot(index, values.shape[1], dtype=values.dtype)
            value = sign * ops.sum(picked * values, axis=1)
            weights = ops.reshape(picked, (-1, values.shape[1]) + (1,) * (len(x.shape) - 1))
            normal = per_example(sign, x) * ops.sum(weights * normals, axis=1)
            x_next = per_example_where(active, x_i + self._step(value, normal), x_i)
            is_now = ops.reshape(ops.arange(self.num_steps) == i, (-1, 1))
            label = ops.squeeze(ops.take_along_axis(candidates, index[:, None], axis=1), 1)
            return (
                i + 1, x_next, ops.logical_and(active, is_unfinished(differences_at(x_next))),
                ops.where(is_now, label, chosen),
                ops.where(is_now, active, is_taken),
            )  # fmt: skip

        shape = (self.num_steps, ops.shape(x)[0])
        start = (
            ops.convert_to_tensor(0, "int32"), x, is_unfinished(differences(logits)),
            ops.zeros(shape, "int32"), ops.zeros(shape, "bool"),
        )  # fmt: skip
        chosen, is_taken = ops.while_loop(unfinished, step, start)[3:]
        label = ops.broadcast_to(y, ops.shape(chosen))
        return Choices(
            source=ops.where(is_correct, label, chosen),
            target=ops.where(is_correct, chosen, label),
            is_taken=is_taken,
            is_correct=is_correct,
        )

    def perturbation(self, classifier: Classifier, x: Any, choices: Choices) -> Any:
        """`x_{num_steps} - x`, differentiable in the weights of the model."""
        delta = ops.zeros_like(x)
        for i in range(self.num_steps):

            def difference(x: Any, i: int = i) -> tuple[Any, Any]:
                z = classifier.logits(x, self.from_logits)
                value = of_class(z, choices.target[i]) - of_class(z, choices.source[i])
                return ops.sum(value), value

            value, normal = backend.value_and_gradient(difference, x + delta)
            is_taken = ops.cast(choices.is_taken[i], x.dtype)
            delta = delta + per_example(is_taken, x) * self._step(value, normal)
        return delta

    def length(self, delta: Any) -> Any:
        """`||delta||` in the norm, for each example."""
        return _norm(delta, math.inf if self.norm == "linf" else 2)

    def _dual_length(self, normal: Any) -> Any:
        return _norm(normal, 1 if self.norm == "linf" else 2)

    def _step(self, value: Any, normal: Any) -> Any:
        """`(1 + overshoot) r`."""
        normal = normal + self.gradient_offset
        length = self._dual_length(normal)
        distance = (1 + self.overshoot) * ops.abs(value) / length
        if self.norm == "linf":
            return per_example(distance, normal) * ops.sign(normal)
        return per_example(distance / length, normal) * normal

    def _nearest(self, values: Any, normals: Any) -> Any:
        """The index of the class whose linearised boundary is nearest."""
        num_candidates = values.shape[1]
        flat = ops.reshape(normals + self.gradient_offset, (-1, *normals.shape[2:]))
        lengths = ops.reshape(self._dual_length(flat), (-1, num_candidates))
        return ops.argmin(ops.abs(values) / lengths, axis=1)


def _norm(x: Any, order: float) -> Any:
    """The norm of each example, not less than the root of `_SMALLEST_SQUARE`."""
    flat = ops.reshape(x, (-1, math.prod(x.shape[1:])))
    if order == 2:
        return ops.sqrt(ops.maximum(ops.sum(ops.square(flat), axis=1), _SMALLEST_SQUARE))
    reduce = ops.max if order == math.inf else ops.sum
    return ops.maximum(reduce(ops.abs(flat), axis=1), math.sqrt(_SMALLEST_SQUARE))
