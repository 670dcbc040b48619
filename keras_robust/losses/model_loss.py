"""The base class of losses that run the model again."""

from typing import Any

import keras
import numpy as np
from keras import ops

from keras_robust.attacks import Attack
from keras_robust.attacks.inputs import as_mask, as_working_dtype
from keras_robust.losses.additive import Additive
from keras_robust.losses.step import Step, current_step
from keras_robust.model.checks import check_broadcasts
from keras_robust.ops.labels import is_one_hot
from keras_robust.ops.logits import class_scores
from keras_robust.types import Config, Images, Labels, Loss, Model, Scores, Seed, Tensor

_CLASS_LOSSES = (
    keras.losses.CategoricalCrossentropy,
    keras.losses.CategoricalFocalCrossentropy,
    keras.losses.SparseCategoricalCrossentropy,
)


def from_logits_of(loss: Loss) -> bool | None:
    """Returns whether a loss takes logits, or `None` if the loss does not specify it."""
    if isinstance(loss, keras.losses.Loss) and hasattr(loss, "from_logits"):
        return loss.from_logits
    return loss.get_config().get("from_logits")


def plain_loss(loss: keras.losses.Loss, y_true: Labels, y_pred: Scores) -> Tensor:
    """Computes a Keras loss for each example.

    A loss over classes receives the single output of a binary classifier as two class scores.
    """
    if isinstance(loss, _CLASS_LOSSES):
        y_pred = class_scores(y_pred, bool(from_logits_of(loss)))
    return loss.call(y_true, y_pred)


class ModelLoss(Additive, keras.losses.Loss):
    """Base class of losses that need the model and the images, not only the predictions.

    Pass it to `compile` like any other loss. The model must be a `kr.RobustModel`. A training step
    has three parts:

    1. `prepare` runs before the gradient tape, for example to run an attack. It chooses the images
       on which the step's predictions are computed, and may store data for `training_loss`.
    2. `forward` runs under the tape and computes the predictions, by default the model's outputs in
       training mode.
    3. `training_loss` runs under the tape and computes one value for each example, from the labels,
       the predictions and the step (the model, the images and the prepared data).

    In `evaluate` and for `val_loss`, the loss is the plain classification loss. Values are
    therefore comparable between defences.

    Args:
        attack: untargeted `kr.attacks.Attack`. May be `None` if `needs_attack` is `False`.
        loss: the classification loss: a `keras.losses.Loss`, or the name of one. Defaults to
            `None`: cross-entropy, sparse or categorical depending on the labels.
        reduction: as in `keras.losses.Loss`. Defaults to `"sum_over_batch_size"`.
        name: string. Defaults to `None`: derived from the class name.
        from_logits: bool. Whether the model returns logits. Used only without an attack, which
            otherwise specifies it. Defaults to `True`.
        mask: array of 0s and 1s that broadcasts to one image. The attack may change only the
            entries where the mask is 1. Defaults to `None`: all entries.

    Raises:
        ValueError: if `attack` is not an untargeted attack; if `loss` and `attack` disagree on
            `from_logits`; when called by a model that is not a `kr.RobustModel`.
    """

    needs_attack = True
    # Whether a batch may hold pairs of images, `((x, x_a), y)`, instead of images.
    takes_pairs = False

    def __init__(
        self,
        attack: Attack | None,
        loss: Loss = None,
        reduction: str | None = "sum_over_batch_size",
        name: str | None = None,
        from_logits: bool = True,
        mask: Tensor = None,
    ) -> None:
        super().__init__(name=name, reduction=reduction)
        if not isinstance(attack, Attack) and (attack is not None or self.needs_attack):
            raise ValueError(
                "Argument `attack` must be a `keras_robust.attacks.Attack`. "
                f"Received: attack={attack!r}"
            )
        if attack is not None and attack.targeted:
            raise ValueError(
                "Argument `attack` must be untargeted, because it receives the true labels. "
                f"Received: attack={attack!r}"
            )
        self.mask = None if mask is None else as_mask(mask, np.shape(mask))
        if mask is not None and attack is None:
            raise ValueError("Argument `mask` needs an `attack`. Received: attack=None")
        self.attack: Any = attack
        self.from_logits: Any = bool(from_logits) if attack is None else attack.from_logits
        self.loss = loss
        self._classification_loss = self._resolve(loss)

    def prepare(self, model: Model, x: Images, y: Labels, seed: Seed) -> tuple[Tensor, Tensor]:
        """Prepares a training step, outside the gradient tape.

        Args:
            model: the classifier.
            x: tensor, shape `(batch_size, ...)`.
            y: labels, as passed to `fit`.
            seed: tensor, different in each step.

        Returns:
            The images on which to compute the step's predictions, and any data that `training_loss`
            needs, which it finds in `step.prepared`.
        """
        return x, None

    def forward(self, step: Step) -> Tensor:
        """Computes the step's predictions under the tape. May store data in `step.kept`."""
        return step.predict(step.x)

    def trained_part(self, model: Model) -> Tensor:
        """Returns the model, or the layer of it, that a step runs in training mode."""
        return model

    def check(self, model: Model, x: Images, y: Labels) -> None:
        """Raises a `ValueError` if the first batch, given as arrays, cannot be trained on."""
        if self.attack is not None:
            self.attack.check(model, x, y)
        if self.mask is not None:
            check_broadcasts("mask", self.mask.shape, x.shape[1:])

    def training_loss(self, step: Step, y_true: Labels, y_pred: Scores) -> Tensor:
        """Returns the loss for each example, shape `(batch_size,)`. Subclasses implement it."""
        raise NotImplementedError(f"{type(self).__name__} must implement `training_loss`.")

    def call(self, y_true: Labels, y_pred: Scores) -> Tensor:
        step = current_step()
        if step is None or (step.training and step.loss is not self):
            raise ValueError(
                f"{type(self).__name__} runs the model again and needs a "
                "`keras_robust.RobustModel`: wrap the model, pass the loss itself, "
                "`keras_robust.RobustModel(model).compile(loss=loss)`, and train with `fit` or "
                "`train_on_batch`. Received: the loss in another model, or inside a function, a "
                "metric or another loss"
            )
        if step.training:
            return self.training_loss(step, y_true, y_pred)
        return self.classification_loss(y_true, y_pred)

    def current_attack(self, x: Images) -> Attack:
        """Returns the attack for `x`, with the radii of the current step."""
        step = current_step()
        return self.attack.at(None if step is None else step.iterations, as_working_dtype(x).dtype)

    def perturbed(self, model: Model, x: Images, y: Labels, seed: Seed) -> Tensor:
        """Returns the attack's adversarial images for the current step."""
        return self.current_attack(x).perturb(model, x, y, seed, self.mask)

    def classification_loss(self, y_true: Labels, y_pred: Scores) -> Tensor:
        """Returns the plain loss for each example, shape `(batch_size,)`."""
        if self._classification_loss is not None:
            return plain_loss(self._classification_loss, y_true, y_pred)
        y_pred = class_scores(y_pred, self.from_logits)
        if is_one_hot(y_true):
            return keras.losses.categorical_crossentropy(
                y_true, y_pred, from_logits=self.from_logits
            )
        return keras.losses.sparse_categorical_crossentropy(
            ops.reshape(y_true, (-1,)), y_pred, from_logits=self.from_logits
        )

    def _resolve(self, loss: Loss) -> keras.losses.Loss | None:
        """Returns the loss as an object that agrees with the attack on `from_logits`."""
        if loss is None:
            return None
        from_logits = self.from_logits
        if isinstance(loss, str):
            class_name = "".join(part[:1].upper() + part[1:] for part in loss.split("_"))
            if not hasattr(keras.losses, class_name):
                raise ValueError(
                    "Argument `loss` must be a `keras.losses.Loss` or the name of one. "
                    f"Received: loss={loss!r}"
                )
            config = keras.losses.get(class_name).get_config()
            if "from_logits" in config:
                config["from_logits"] = from_logits
            return type(keras.losses.get(class_name)).from_config(config)
        if isinstance(loss, ModelLoss) or not isinstance(loss, keras.losses.Loss):
            raise ValueError(
                "Argument `loss` must be a `keras.losses.Loss` of labels and predictions, or the "
                f"name of one. Received: loss={loss!r}"
            )
        if from_logits_of(loss) == (not from_logits):
            raise ValueError(
                "Arguments `loss` and `attack` must agree on whether the model returns logits. "
                f"Received: loss with from_logits={not from_logits}, {self.attack!r}"
            )
        return loss

    def get_config(self) -> Config:
        return {
            "attack": self.attack and keras.saving.serialize_keras_object(self.attack),
            "loss": self.loss
            if self.loss is None or isinstance(self.loss, str)
            else keras.saving.serialize_keras_object(self.loss),
            **super().get_config(),
        }

    @property
    def saved_mask(self) -> Any:
        """The mask as stored in the configuration."""
        return None if self.mask is None else self.mask.astype(int).tolist()

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "ModelLoss":
        objects = {
            name: keras.saving.deserialize_keras_object(config[name])
            for name in ("attack", "loss")
            if isinstance(config.get(name), dict)
        }
        return cls(**{**config, **objects})
