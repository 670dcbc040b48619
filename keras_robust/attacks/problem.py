"""What an attack may ask of a model."""

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
from keras_robust.ops import logit_range, margin, rounding, rounding_of_probabilities
from keras_robust.ops.logits import class_scores
from keras_robust.ops.precision import EPSILON

# A loss: from class scores, shape `(batch_size, num_classes)`, and labels, shape `(batch_size,)`,
# to one value for each example, which an untargeted attack climbs.
Loss = Callable[[Any, Any], Any]


class Problem:
    """A batch of labels and the model to be fooled on it, as attacks see them.

    There are two views of the model. `scores`, `gradient`, `loss_and_gradient` and
    `scores_and_jacobian` are what the attack differentiates: the model, or the attack's
    `objective`. `margin` is the model itself, by which success is judged. All are averages over
    the attack's `num_samples` draws of a random model.

    The same image gets other logits in a batch of another size: sums are added up in another order.
    An image on the very boundary would fool the model in one batch and not in the next. So `margin`
    is positive where the model is fooled by more than rounding can undo, and a tie is none.

    Args:
        attack: `kr.attacks.Attack`.
        classifier: the model.
        y: int32 tensor of labels, shape `(batch_size,)`.
        seed: tensor, seed of the model's own random numbers.
        dtype: what the user's images are in. Defaults to `None`: as the attack computes.
        caution: float. By how many times what rounding can undo the model must be fooled. An
            attack asks for more than its judge does, who runs the model in another function.
            Defaults to `1.0`.
        space: the coordinates that images are given in. Defaults to `None`: those of the model.
    """

    def __init__(
        self,
        attack: Any,
        classifier: Classifier,
        y: Any,
        seed: Any,
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

    def at(self, step: Any) -> "Problem":
        """The same problem with other draws of a random model, to be used in step `step`."""
        return self._with(_seed=backend.fold_in(self._seed, step))

    def with_labels(self, y: Any) -> "Problem":
        """The same problem with other labels."""
        return self._with(y=y)

    def _with(self, **attributes: Any) -> "Problem":
        other = copy.copy(self)
        vars(other).update(attributes)
        return other

    def as_returned(self, x: Any) -> Any:
        """`x` clipped to the bounds, and rounded to what the user's images are in.

        An image that is misclassified by little may not be so once it has been rounded.
        """
        x = ops.clip(x, *self._attack.bounds)
        if self._dtype is None:
            return x
        if self._space is None:
            return backend.rounded(x, self._dtype)
        return self._space.inside(backend.rounded(self._space.outside(x), self._dtype))

    def _image(self, x: Any) -> Any:
        """What the model is run on."""
        return x if self._space is None else self._space.outside(x)

    @property
    def spacing(self) -> float:
        """The distance of neighbouring values in the user's images, at the larger bound."""
        dtype = keras.backend.standardize_dtype(self._dtype or "float32")
        return EPSILON[dtype] * max(abs(bound) for bound in self._attack.bounds)

    @property
    def depends_on_batch(self) -> bool:
        """Whether the model's answer to one example depends on the others in its batch."""
        return self._classifier.depends_on_batch

    def scores(self, x: Any) -> Any:
        """Differentiable class scores, shape `(batch_size, num_classes)`."""
        return self._average(lambda: self._scores(x))

    def num_classes(self, x: Any) -> int:
        """The number of the model's classes."""
        return self._logits(x).shape[-1]

    def margin(self, x: Any) -> Any:
        """How far the model itself is fooled, shape `(batch_size,)`: positive where it is.

        `max_{j != y} z_j - z_y - tau`; `z_y - max_{j != y} z_j - tau` for a targeted attack. `tau`
        is `rounding(z)`. Where the model's outputs are probabilities that round to a tie, it is
        not positive.
        """
        return self._margin(self._average(lambda: self._logits(x)))

    def margin_from(self, scores: Any, x: Any) -> Any:
        """`margin(x)`, where `scores(x)` is known: the model is run only where it differs."""
        with attacked_as(self._classifier.model) as is_other:
            pass
        is_model = self._attack.objective is None and not is_other
        return self._margin(scores) if is_model else self.margin(x)

    def rounding(self, scores: Any) -> Any:
        """`tau`: by how much the model must be fooled, shape `(batch_size,)`."""
        return self._caution * rounding(scores, self.y, self._classifier.precision)

    def gradient(self, loss: Loss, x: Any) -> Any:
        """The direction in which an attack climbs: see `loss_and_gradient`."""
        return self.loss_and_gradient(loss, x)[1]

    def loss_and_gradient(self, loss: Loss, x: Any) -> tuple[Any, Any]:
        """The values to climb, shape `(batch_size,)`, and their gradient in `x`.

        The gradient of each example is divided by the range of its class scores, so that it
        neither overflows nor underflows where a model's scores are huge: its direction counts,
        not its length. (Draws of a random model are averaged, so they share a scale, the mean
        over the batch: else the draws with the smallest range would drown the others.) An
        `objective` that returns one value for each example takes the place of `loss`, and is not
        scaled.
        """
        return self._scores_loss_and_gradient(loss, x)[1:]

    def margin_loss_and_gradient(self, loss: Loss, x: Any) -> tuple[Any, Any, Any]:
        """`margin(x)` and `loss_and_gradient(loss, x)`; in one pass if there is no `objective`."""
        scores, values, gradient = self._scores_loss_and_gradient(loss, x)
        return self.margin_from(scores, x), values, gradient

    def scores_and_gradient(self, select: Callable[[Any], Any], x: Any) -> tuple[Any, Any]:
        """All class scores, and the true gradient in `x` of `select(scores)`.

        `select` gives one value for each example.
        """

        def function(x: Any) -> tuple[Any, Any]:
            scores = self._scores(x)
            return ops.sum(select(scores)), scores

        return self._average(lambda: backend.value_and_gradient(function, x))

    def scores_and_jacobian(self, select: Callable[[Any], Any], x: Any) -> tuple[Any, Any]:
        """`select(scores)`, shape `(batch_size, k)`, and its gradients, `(batch_size, k, ...)`.

        It counts as k gradients.
        """
        return self._average(
            lambda: backend.value_and_jacobian(lambda x: select(self._scores(x)), x)
        )

    def _logits(self, x: Any) -> Any:
        return self._classifier.logits(self._image(x), self._attack.from_logits)

    def _margin(self, logits: Any) -> Any:
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

    def _scores_loss_and_gradient(self, loss: Loss, x: Any) -> tuple[Any, Any, Any]:
        def function(x: Any) -> tuple[Any, Any]:
            scores = self._objective(x)
            if len(scores.shape) == 1:
                return ops.sum(scores), (scores, scores)
            values = self.sign * loss(scores, self.y)
            scale = logit_range(scores)
            if self._attack.num_samples > 1:
                scale = ops.mean(scale)
            return ops.sum(values / ops.stop_gradient(scale)), (scores, values)

        def compute() -> tuple[Any, Any, Any]:
            (scores, values), gradient = backend.value_and_gradient(function, x)
            return scores, values, gradient

        return self._average(compute)

    def _objective(self, x: Any) -> Any:
        """Class scores, or one value for each example."""
        if self._attack.objective is None:
            with attacked_as(self._classifier.model):
                return self._logits(x)
        values = self._attack.objective(self._classifier.model, self._image(x), self.y)
        if len(values.shape) not in (1, 2):
            raise ValueError(
                "Argument `objective` must return one value for each example, shape "
                "`(batch_size,)`, or class scores, shape `(batch_size, num_classes)`. "
                f"Received: values of shape {tuple(values.shape)}"
            )
        values = class_scores(values) if len(values.shape) == 2 else values
        return ops.cast(values, x.dtype) if values.dtype != x.dtype else values

    def _scores(self, x: Any) -> Any:
        scores = self._objective(x)
        if len(scores.shape) == 1:
            raise ValueError(
                f"{type(self._attack).__name__} needs class scores: its `objective` must return "
                "shape `(batch_size, num_classes)`. Received: one value for each example"
            )
        return scores

    def _average(self, compute: Callable[[], Any]) -> Any:
        """The mean over draws of the model's random numbers, of tensors or tuples of tensors."""

        def draw(number: Any) -> list[Any]:
            with backend.seeded(self._classifier.random_state, backend.fold_in(self._seed, number)):
                values = compute()
            return list(values) if isinstance(values, tuple) else [values]

        def add(number: Any, totals: Any) -> list[Any]:
            return [a + b for a, b in zip(totals, draw(number), strict=True)]

        total = draw(0)
        num_samples = self._attack.num_samples
        if num_samples > 1:
            total = self.fori_loop(1, num_samples, add, total)
            total = [value / num_samples for value in total]
        return tuple(total) if len(total) > 1 else total[0]
