"""Sums of losses."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_robust.losses import weight
from keras_robust.losses.additive import Additive
from keras_robust.losses.model_loss import ModelLoss, from_logits_of, plain_loss
from keras_robust.losses.step import Step, current_step
from keras_robust.types import Config, Images, Labels, Loss, Model, Scores, Seed, Tensor


@keras.saving.register_keras_serializable(package="keras_robust")
class Sum(ModelLoss):
    """Computes a weighted sum of losses.

        L = w_1 L_1 + ... + w_n L_n

    If one of the losses belongs to this package, `loss_1 + loss_2` and `sum([loss_1, loss_2])` are
    the same as `Sum([loss_1, loss_2])`, and `0.5 * loss` is `Sum([loss], [0.5])`. Each loss
    prepares its own images and computes its predictions on them. Losses on the same images, such as
    the clean images, share one pass through the model. For example,
    `DeepDefense(...) + AdversarialTraining(FGSM(...))`, the combination in the Deep Defense paper,
    is

        CE(x, y) + lambda R(x, y) + CE(x_adv, y)

    During `fit`, `accuracy` is computed on the images of the first loss. `evaluate` and `val_loss`
    report the first loss's classification loss.

    Args:
        losses: sequence of `keras.losses.Loss`. Losses that run the model again need a
            `kr.RobustModel`. The `reduction` of the individual losses is not used.
        weights: sequence with one weight for each loss: a non-negative number, a `keras.Variable`
            or a `keras.optimizers.schedules.LearningRateSchedule`. Defaults to `None`: 1 for each.
        reduction: as in `keras.losses.Loss`. Defaults to `"sum_over_batch_size"`.
        name: string. Defaults to `None`: derived from the class name.

    Raises:
        ValueError: if `losses` is empty or contains anything but losses; if the number of weights
            differs from the number of losses, or a weight is negative, NaN or infinite; if some
            losses expect logits and others probabilities; when called by a model that is not a
            `kr.RobustModel`, if one of the losses needs it.

    Example:

    >>> import keras, numpy as np, keras_robust as kr
    >>> x = np.random.rand(64, 8, 8, 1).astype("float32")
    >>> y = np.random.randint(0, 10, 64)
    >>> model = kr.RobustModel(keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(10)]))
    >>> loss = kr.losses.TRADES(kr.attacks.PGD(0.1, num_steps=2)) + kr.losses.FisherInformation()
    >>> model.compile(optimizer="adam", loss=loss)
    >>> history = model.fit(x, y, verbose=0)

    Reference:

    - Yan et al., Deep Defense: Training DNNs with Improved Adversarial Robustness, section 4
    - Wang et al., Adversarial Defense via Data Dependent Activation Function and Total Variation
      Minimization, section 5: the defences are additive
    """

    needs_attack = False

    def __init__(
        self,
        losses: Sequence[Any],
        weights: Sequence[Any] | None = None,
        reduction: str | None = "sum_over_batch_size",
        name: str | None = None,
    ) -> None:
        super().__init__(None, None, reduction, name)
        losses = list(losses) if isinstance(losses, list | tuple) else []
        if not losses or not all(isinstance(loss, keras.losses.Loss) for loss in losses):
            raise ValueError(
                "Argument `losses` must be a list of at least one `keras.losses.Loss`. "
                f"Received: losses={losses!r}"
            )
        if weights is None:
            weights = [1.0] * len(losses)
        if not isinstance(weights, list | tuple) or len(weights) != len(losses):
            raise ValueError(
                f"Argument `weights` must have one weight for each of the {len(losses)} losses. "
                f"Received: weights={weights!r}"
            )
        conventions = {from_logits_of(loss) for loss in losses} - {None}
        if len(conventions) > 1:
            raise ValueError(
                "The losses in argument `losses` must agree on `from_logits`, because they receive "
                f"the outputs of the same model. Received: losses={losses!r}"
            )
        self.losses = losses
        self.weights = [weight.check_weight("weights", value) for value in weights]
        self.from_logits = conventions.pop() if conventions else None

    @property
    def takes_pairs(self) -> bool:  # type: ignore[override]
        return any(getattr(loss, "takes_pairs", False) for loss in self.losses)

    def trained_part(self, model: Model) -> Tensor:
        first = self.losses[0]
        return first.trained_part(model) if isinstance(first, ModelLoss) else model

    def prepare(self, model: Model, x: Images, y: Labels, seed: Seed) -> tuple[Tensor, Tensor]:
        prepared = [
            loss.prepare(model, given, y, seed) if isinstance(loss, ModelLoss) else (given, None)
            for loss, given in self._with_inputs(x)
        ]
        return prepared[0][0], prepared

    def _with_inputs(self, x: Images) -> list[tuple[Any, Any]]:
        """Returns each loss with its part of a batch: pairs if it takes them, else images."""
        images = x[0] if self.takes_pairs and isinstance(x, tuple | list) else x
        return [(v, x if getattr(v, "takes_pairs", False) else images) for v in self.losses]

    def forward(self, step: Step) -> Tensor:
        step.kept = [
            dataclasses.replace(step, x=x, prepared=prepared) for x, prepared in step.prepared
        ]
        return _forward(self.losses[0], step.kept[0])

    def training_loss(self, step: Step, y_true: Labels, y_pred: Scores) -> Tensor:
        outputs = {self._pass_key(0, step.kept[0].x): y_pred}
        total: Any = 0.0
        for number, (loss, factor) in enumerate(zip(self.losses, self.weights, strict=True)):
            part = step.kept[number]
            part.losses = step.losses
            key = self._pass_key(number, part.x)
            if key not in outputs:
                outputs[key] = ops.cast(_forward(loss, part), y_pred.dtype)
            value = (
                loss.training_loss(part, y_true, outputs[key])
                if isinstance(loss, ModelLoss)
                else plain_loss(loss, y_true, outputs[key])
            )
            total = total + weight.current(factor) * value
        return total

    def _pass_key(self, number: int, x: Images) -> tuple[str, int]:
        """Identifies the pass through the model that a loss's predictions come from."""
        loss = self.losses[number]
        has_own = isinstance(loss, ModelLoss) and type(loss).forward is not ModelLoss.forward
        return ("loss", number) if has_own else ("images", id(x))

    def call(self, y_true: Labels, y_pred: Scores) -> Tensor:
        if current_step() is None and not any(isinstance(v, ModelLoss) for v in self.losses):
            values = [plain_loss(loss, y_true, y_pred) for loss in self.losses]
            return sum(weight.current(w) * v for w, v in zip(self.weights, values, strict=True))
        return super().call(y_true, y_pred)

    def classification_loss(self, y_true: Labels, y_pred: Scores) -> Tensor:
        first = self.losses[0]
        if isinstance(first, ModelLoss):
            return first.classification_loss(y_true, y_pred)
        return plain_loss(first, y_true, y_pred)

    def check(self, model: Model, x: Images, y: Labels) -> None:
        for loss, given in self._with_inputs(x):
            if isinstance(loss, ModelLoss):
                loss.check(model, given, y)

    def get_config(self) -> Config:
        config = super().get_config()
        return {
            "losses": [keras.saving.serialize_keras_object(loss) for loss in self.losses],
            "weights": [weight.saved(value) for value in self.weights],
            "reduction": config["reduction"],
            "name": config["name"],
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "Sum":
        losses = [keras.saving.deserialize_keras_object(loss) for loss in config["losses"]]
        return cls(**{**config, "losses": losses})


def added(first: Tensor, second: Tensor) -> Sum:
    """Returns the sum of two losses. A `Sum` contributes its individual losses."""
    losses: list[Any] = []
    factors: list[Any] = []
    settings: dict[str, Any] = {}
    for term in (first, second):
        if isinstance(term, Sum):
            losses += term.losses
            factors += term.weights
            settings.setdefault("reduction", term.reduction)
        else:
            losses.append(term)
            factors.append(1.0)
    return Sum(losses, factors, **settings)


def scaled(loss: Loss, factor: float) -> Sum:
    """Returns a loss times a non-negative number, a `keras.Variable` or a schedule."""
    return Sum([loss], [factor], loss.reduction)


Additive.added = staticmethod(added)
Additive.scaled = staticmethod(scaled)


def _forward(loss: Loss, part: Step) -> Tensor:
    """Computes a loss's predictions on its own images."""
    return loss.forward(part) if isinstance(loss, ModelLoss) else part.predict(part.x)
