"""DeepFool whose perturbation is differentiable with respect to the model's weights.

The perturbation is computed twice. `choose` runs the steps and records the discrete choices:
which two classes each step moves between, and which examples still need the step. `perturbation`
repeats the steps with these choices fixed. It needs one gradient a step and is smooth almost
everywhere.
"""

import dataclasses
import math
from typing import Any

from keras import ops

from keras_robust import backend
from keras_robust.model.classifier import Classifier
from keras_robust.ops.balls import per_example, per_example_where
from keras_robust.ops.logits import of_class, other_classes
from keras_robust.types import Images, Labels, Tensor

# Lower bound of squared lengths: keeps the gradient of the square root finite.
_SMALLEST_SQUARE = 1e-30


@dataclasses.dataclass(frozen=True)
class Choices:
    """The discrete choices of all steps.

    Args:
        source: int32, shape `(num_steps, batch_size)`. The class `a` that each step leaves.
        target: int32, shape `(num_steps, batch_size)`. The class `b` that each step moves to.
        is_taken: bool, shape `(num_steps, batch_size)`. Whether the example needs the step.
        is_correct: bool, shape `(batch_size,)`. Whether the example is classified correctly.
    """

    source: Any
    target: Any
    is_taken: Any
    is_correct: Any


@dataclasses.dataclass(frozen=True)
class DifferentiableDeepFool:
    """Computes DeepFool perturbations, without bounds on the images.

        r_i = |f(x_i)| / ||w||_q * d(w),    f = z_b - z_a,    w = grad f(x_i) + gradient_offset
        x_{i+1} = x_i + (1 + overshoot) r_i

    For a correctly classified example, `a` is the label and `b` is the class with the nearest
    linearised boundary. Steps are taken until `a` is no longer predicted. For a misclassified
    example, `b` is the label and `a` is the most likely other class. Steps are taken until `b` is
    predicted. For the L2 norm, `q = 2` and `d(w) = w / ||w||_2`. For L-infinity, `q = 1` and
    `d(w) = sign(w)`.
    """

    norm: str
    num_steps: int
    overshoot: float
    num_candidates: int
    gradient_offset: float
    from_logits: bool

    def choose(self, classifier: Classifier, x: Images, y: Labels) -> Choices:
        """Runs the steps. `x` is float32, `y` holds int32 labels of shape `(batch_size,)`."""
        logits = classifier.logits(x, self.from_logits)
        is_correct = ops.cast(ops.argmax(logits, axis=-1), y.dtype) == y
        candidates = other_classes(logits, y)[:, : self.num_candidates - 1]
        sign = ops.where(is_correct, 1.0, -1.0)

        def differences(z: Tensor) -> Tensor:
            return ops.take_along_axis(z, candidates, axis=1) - ops.expand_dims(of_class(z, y), 1)

        def differences_at(x: Images) -> Tensor:
            return differences(classifier.logits(x, self.from_logits))

        def is_unfinished(values: Tensor) -> Tensor:
            lead = ops.max(values, axis=1)
            return ops.where(is_correct, lead <= 0, lead > 0)

        def unfinished(
            i: Tensor, x_i: Images, active: Tensor, chosen: Tensor, is_taken: Tensor
        ) -> Tensor:
            return ops.logical_and(i < self.num_steps, ops.any(active))

        def step(
            i: Tensor, x_i: Images, active: Tensor, chosen: Tensor, is_taken: Tensor
        ) -> tuple[Any, ...]:
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

    def perturbation(self, classifier: Classifier, x: Images, choices: Choices) -> Any:
        """Returns `x_{num_steps} - x`, differentiable with respect to the weights."""
        delta = ops.zeros_like(x)
        for i in range(self.num_steps):

            def difference(x: Images, i: int = i) -> tuple[Tensor, Tensor]:
                z = classifier.logits(x, self.from_logits)
                value = of_class(z, choices.target[i]) - of_class(z, choices.source[i])
                return ops.sum(value), value

            value, normal = backend.value_and_gradient(difference, x + delta)
            is_taken = ops.cast(choices.is_taken[i], x.dtype)
            delta = delta + per_example(is_taken, x) * self._step(value, normal)
        return delta

    def length(self, delta: Tensor) -> Tensor:
        """Returns `||delta||` for each example."""
        return _norm(delta, math.inf if self.norm == "linf" else 2)

    def _dual_length(self, normal: Tensor) -> Tensor:
        return _norm(normal, 1 if self.norm == "linf" else 2)

    def _step(self, value: Any, normal: Tensor) -> Tensor:
        """Returns the step `(1 + overshoot) r`."""
        normal = normal + self.gradient_offset
        length = self._dual_length(normal)
        distance = (1 + self.overshoot) * ops.abs(value) / length
        if self.norm == "linf":
            return per_example(distance, normal) * ops.sign(normal)
        return per_example(distance / length, normal) * normal

    def _nearest(self, values: Tensor, normals: Tensor) -> Tensor:
        """Returns the index of the class with the nearest linearised boundary."""
        num_candidates = values.shape[1]
        flat = ops.reshape(normals + self.gradient_offset, (-1, *normals.shape[2:]))
        lengths = ops.reshape(self._dual_length(flat), (-1, num_candidates))
        return ops.argmin(ops.abs(values) / lengths, axis=1)


def _norm(x: Images, order: float) -> Tensor:
    """Returns the norm of each example, at least the square root of `_SMALLEST_SQUARE`."""
    flat = ops.reshape(x, (-1, math.prod(x.shape[1:])))
    if order == 2:
        return ops.sqrt(ops.maximum(ops.sum(ops.square(flat), axis=1), _SMALLEST_SQUARE))
    reduce = ops.max if order == math.inf else ops.sum
    return ops.maximum(reduce(ops.abs(flat), axis=1), math.sqrt(_SMALLEST_SQUARE))
