"""The model and the labels, as attacks see them."""

import copy
from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from keras_robust import backend
from keras_robust.attacks.space import Space
from keras_robust.model.classifier import Classifier
from keras_robust.model.patching import attacked_as
from keras_robust.model.smoothed import SmoothedClassifier
from keras_robust.ops.logits import (
    class_scores,
    logit_range,
    margin,
    rounding,
    rounding_of_probabilities,
)
from keras_robust.ops.precision import EPSILON
from keras_robust.types import Images, Labels, ScoreLoss, Scores, Seed, Tensor


class Problem:
    """Gives attacks access to the model to be fooled, on a batch with labels.

    There are two views of the model. `scores`, `gradient`, `loss_and_gradient` and
    `scores_and_jacobian` differentiate the attack's `objective`, or without one the model, whose
    layers then compute their surrogates if they have any (see `kr.layers.WNLLHead`). `margin`
    always uses the model itself and decides success. All of them average over the attack's
    `num_samples` draws of a random model.

    The logits of an image change slightly with the batch size, because sums are added up in another
    order. An image exactly on the boundary would fool the model in one batch and not in the next.
    `margin` is therefore positive only if the model is fooled by more than rounding can undo. A tie
    does not count as fooled.

    Args:
        attack: `kr.attacks.Attack`.
        classifier: `Classifier` of the model.
        y: int32 tensor of labels, shape `(batch_size,)`.
        seed: tensor. Seed of the model's random numbers.
        dtype: string. Dtype of the user's images. Defaults to `None`: the dtype in which the attack
            computes.
        caution: float. The model counts as fooled if the margin exceeds this many times the
            rounding tolerance. Attacks use a larger value than their judge, which runs the model in
            another compiled function. Defaults to `1.0`.
        space: `Space`. Coordinates of the images. Defaults to `None`: those of the model's input.
    """

    def __init__(
        self,
        attack: Any,
        classifier: Classifier,
        y: Labels,
        seed: Seed,
        dtype: str | None = None,
        caution: float = 1.0,
        space: Space | None = None,
    ) -> None:
        self.y = y
        self.sign = -1.0 if attack.targeted else 1.0
        self.while_loop, self.fori_loop = classifier.while_loop, classifier.fori_loop
        self.cond = classifier.cond
        self._attack = attack
        self._classifier = classifier
        self._seed = seed
        self._dtype = dtype
        self._caution = caution
        self._space = space

    def at(self, step: Tensor) -> "Problem":
        """Returns the same problem with other draws of a random model, for step `step`."""
        return self._with(_seed=backend.fold_in(self._seed, step))

    def with_labels(self, y: Labels) -> "Problem":
        """Returns the same problem with other labels."""
        return self._with(y=y)

    def _with(self, **attributes: Any) -> "Problem":
        other = copy.copy(self)
        vars(other).update(attributes)
        return other

    def as_returned(self, x: Images) -> Tensor:
        """Clips `x` to the bounds and rounds it to the dtype of the user's images.

        Rounding can undo a misclassification by a small margin, so attacks round an image before
        they query the model on it.
        """
        x = ops.clip(x, *self._attack.bounds)
        if self._dtype is None:
            return x
        if self._space is None:
            return backend.rounded(x, self._dtype)
        return self._space.inside(backend.rounded(self._space.outside(x), self._dtype))

    def _image(self, x: Images) -> Tensor:
        """Converts `x` to the coordinates of the model's input."""
        return x if self._space is None else self._space.outside(x)

    @property
    def spacing(self) -> float:
        """The distance between neighbouring values of the user's images at the larger bound."""
        dtype = keras.backend.standardize_dtype(self._dtype or "float32")
        return EPSILON[dtype] * max(abs(bound) for bound in self._attack.bounds)

    @property
    def depends_on_batch(self) -> bool:
        """Whether the prediction for one example depends on the rest of its batch."""
        return self._classifier.depends_on_batch

    def scores(self, x: Images) -> Tensor:
        """Returns differentiable class scores, shape `(batch_size, num_classes)`."""
        return self._average(lambda: self._scores(x))

    def num_classes(self, x: Images) -> int:
        """Returns the number of the model's classes."""
        return self._logits(x).shape[-1]

    def margin(self, x: Images) -> Tensor:
        """Returns the margin by which the model is fooled, shape `(batch_size,)`.

        The margin is `max_{j != y} z_j - z_y - tau`, or `z_y - max_{j != y} z_j - tau` for a
        targeted attack, where `tau` is `rounding(z)`. It is positive if the model is fooled. For a
        `SmoothedClassifier`, the lead that chance can explain is also subtracted. If the model
        returns probabilities that are tied up to rounding, the margin is not positive.
        """
        return self._margin(self._average(lambda: self._logits(x)))

    def margin_from(self, scores: Scores, x: Images) -> Tensor:
        """Returns `margin(x)`, given the known `scores(x)`.

        Runs the model only if the attack differentiates something else than the model.
        """
        with attacked_as(self._classifier.model) as is_other:
            pass
        is_model = self._attack.objective is None and not is_other
        return self._margin(scores) if is_model else self.margin(x)

    def rounding(self, scores: Scores) -> Tensor:
        """Returns `tau`, the margin that rounding can explain, shape `(batch_size,)`."""
        return self._caution * rounding(scores, self.y, self._classifier.precision)

    def gradient(self, loss: ScoreLoss, x: Images) -> Tensor:
        """Returns the direction of ascent; see `loss_and_gradient`."""
        return self.loss_and_gradient(loss, x)[1]

    def loss_and_gradient(self, loss: ScoreLoss, x: Images) -> tuple[Tensor, Tensor]:
        """Returns the values to maximise, shape `(batch_size,)`, and their gradient in `x`.

        The gradient of each example is divided by the range of its class scores, so that it neither
        overflows nor underflows if the scores are huge. Only its direction matters. With
        `num_samples` greater than 1, the mean range of the batch is used instead. Otherwise, the
        draws with the smallest range would dominate the average. An `objective` that returns one
        value per example replaces `loss` and is not scaled.
        """
        return self._scores_loss_and_gradient(loss, x)[1:]

    def margin_loss_and_gradient(self, loss: ScoreLoss, x: Images) -> tuple[Tensor, Tensor, Tensor]:
        """Returns `margin(x)` and `loss_and_gradient(loss, x)`.

        This takes a single pass if the attack differentiates the model itself.
        """
        scores, values, gradient = self._scores_loss_and_gradient(loss, x)
        return self.margin_from(scores, x), values, gradient

    def scores_and_gradient(
        self, select: Callable[[Tensor], Tensor], x: Images
    ) -> tuple[Tensor, Tensor]:
        """Returns all class scores, and the unscaled gradient in `x` of `select(scores)`.

        `select` returns one value per example.
        """

        def function(x: Images) -> tuple[Tensor, Tensor]:
            scores = self._scores(x)
            return ops.sum(select(scores)), scores

        return self._average(lambda: backend.value_and_gradient(function, x))

    def scores_and_jacobian(
        self, select: Callable[[Tensor], Tensor], x: Images
    ) -> tuple[Tensor, Tensor]:
        """Returns `k` values per example, `select(scores)`, and their gradients.

        The shapes are `(batch_size, k)` and `(batch_size, k, ...)`. A call counts as `k` gradients.
        """
        return self._average(
            lambda: backend.value_and_jacobian(lambda x: select(self._scores(x)), x)
        )

    def _logits(self, x: Images) -> Tensor:
        return self._classifier.logits(self._image(x), self._attack.from_logits)

    def _margin(self, logits: Scores) -> Tensor:
        values = self.sign * margin(logits, self.y) - self.rounding(logits)
        model = self._classifier.model
        if isinstance(model, SmoothedClassifier):
            values -= model.largest_chance(self._attack.num_samples, logits.shape[-1])
        if self._attack.from_logits:
            return values
        p = self._classifier.probabilities(logits)
        difference = self.sign * margin(p, self.y)
        is_tie = difference <= rounding_of_probabilities(p, self._classifier.precision)
        return ops.where(is_tie, ops.minimum(values, 0.0), values)

    def _scores_loss_and_gradient(
        self, loss: ScoreLoss, x: Images
    ) -> tuple[Tensor, Tensor, Tensor]:
        def function(x: Images) -> tuple[Tensor, Tensor]:
            scores = self._objective(x)
            if len(scores.shape) == 1:
                return ops.sum(scores), (scores, scores)
            values = self.sign * loss(scores, self.y)
            scale = logit_range(scores)
            if self._attack.num_samples > 1:
                scale = ops.mean(scale)
            return ops.sum(values / ops.stop_gradient(scale)), (scores, values)

        def compute() -> tuple[Tensor, Tensor, Tensor]:
            (scores, values), gradient = backend.value_and_gradient(function, x)
            return scores, values, gradient

        return self._average(compute)

    def _objective(self, x: Images) -> Tensor:
        """Returns class scores, or one value per example."""
        if self._attack.objective is None:
            with attacked_as(self._classifier.model):
                return self._logits(x)
        values = self._attack.objective(self._classifier.model, self._image(x), self.y)
        if len(values.shape) not in (1, 2):
            raise ValueError(
                "Argument `objective` must return one value per example, shape "
                "`(batch_size,)`, or class scores, shape `(batch_size, num_classes)`. "
                f"Received: values of shape {tuple(values.shape)}"
            )
        values = class_scores(values) if len(values.shape) == 2 else values
        return ops.cast(values, x.dtype) if values.dtype != x.dtype else values

    def _scores(self, x: Images) -> Tensor:
        scores = self._objective(x)
        if len(scores.shape) == 1:
            raise ValueError(
                f"{type(self._attack).__name__} needs class scores: its `objective` must return "
                "shape `(batch_size, num_classes)`. Received: one value per example"
            )
        return scores

    def _average(self, compute: Callable[[], Any]) -> Any:
        """Averages the tensors that `compute` returns over draws of a random model."""

        def draw(number: Tensor) -> list[Any]:
            with backend.seeded(self._classifier.random_state, backend.fold_in(self._seed, number)):
                values = compute()
            return list(values) if isinstance(values, tuple) else [values]

        def add(number: Tensor, totals: Tensor) -> list[Any]:
            return [a + b for a, b in zip(totals, draw(number), strict=True)]

        total = draw(0)
        num_samples = self._attack.num_samples
        if num_samples > 1:
            total = self.fori_loop(1, num_samples, add, total)
            total = [value / num_samples for value in total]
        return tuple(total) if len(total) > 1 else total[0]
