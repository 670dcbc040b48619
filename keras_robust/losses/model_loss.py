"""The base class of the losses that run the model again."""

from typing import Any

import keras
import numpy as np
from keras import ops

from keras_robust.attacks import Attack
from keras_robust.attacks.inputs import as_mask, as_working_dtype
from keras_robust.losses.additive import Additive
from keras_robust.losses.step import Step, current_step
from keras_robust.model.arrays import check_broadcasts
from keras_robust.ops.labels import is_one_hot
from keras_robust.ops.logits import class_scores

_OF_CLASSES = (
    keras.losses.CategoricalCrossentropy,
    keras.losses.CategoricalFocalCrossentropy,
    keras.losses.SparseCategoricalCrossentropy,
)


def from_logits_of(loss: Any) -> bool | None:
    """Whether a loss says that it takes logits; `None` where it says nothing."""
    if isinstance(loss, keras.losses.Loss) and hasattr(loss, "from_logits"):
        return loss.from_logits
    return loss.get_config().get("from_logits")


def plain_loss(loss: keras.losses.Loss, y_true: Any, y_pred: Any) -> Any:
    """A loss of Keras for each example; where that is one of classes, one output counts as two."""
    if isinstance(loss, _OF_CLASSES):
        y_pred = class_scores(y_pred, bool(from_logits_of(loss)))
    return loss.call(y_true, y_pred)


class ModelLoss(Additive, keras.losses.Loss):
    """Base class: a loss that needs the model and the images, not the predictions alone.

    It is passed to `compile` like any loss; the model must be a `kr.RobustModel`. A training
    step has three parts:

    1. `prepare`, before the gradient tape: runs an attack, say. It chooses the images that the
       step's predictions are computed from, and may keep something for later.
    2. `forward`, under the tape: the predictions, by default those of the model in training mode.
    3. `training_loss`, under the tape: one value for each example, from the labels, the
       predictions and the step (the model, the images, what was prepared).

    `evaluate` and `val_loss` have neither: there, and there alone, this is the plain
    classification loss, so that it can be compared between defences.

    Args:
        attack: `kr.attacks.Attack`, untargeted; `None` where `needs_attack` is `False`.
        loss: the classification loss: a `keras.losses.Loss`, or the name of one. Defaults to
            `None`: cross-entropy, sparse or categorical as the labels are.
        reduction: as in `keras.losses.Loss`. Defaults to `"sum_over_batch_size"`.
        name: string. Defaults to `None`: the class's name.
        from_logits: bool. Whether the model returns logits, where there is no attack that says
            so. Defaults to `True`.
        mask: array of 0 and 1 that broadcasts to one image, 1 where the attack may change it.
            Defaults to `None`: everywhere.

    Raises:
        ValueError: if `attack` is not an untargeted attack; if `loss` has another `from_logits`
            than the attack; when called by a model that is not a `kr.RobustModel`.
    """

    needs_attack = True
    # Whether a batch may bring pairs of images, `((x, x_a), y)`, instead of images.
    takes_pairs = False

    def __init__(
        self,
        attack: Attack | None,
        loss: Any = None,
        reduction: str | None = "sum_over_batch_size",
        name: str | None = None,
        from_logits: bool = True,
        mask: Any = None,
    ) -> None:
        super().__init__(name=name, reduction=reduction)
        if not isinstance(attack, Attack) and (attack is not None or self.needs_attack):
            raise ValueError(
                "Argument `attack` must be a `keras_robust.attacks.Attack`. "
                f"Received: attack={attack!r}"
            )
        if attack is not None and attack.targeted:
            raise ValueError(
                "Argument `attack` must be untargeted: it is given the true labels. "
                f"Received: attack={attack!r}"
            )
        self.mask = None if mask is None else as_mask(mask, np.shape(mask))
        if mask is not None and attack is None:
            raise ValueError(
                "Argument `mask` is for the `attack`, and needs one. Received: attack=None"
            )
        self.attack: Any = attack
        self.from_logits: Any = bool(from_logits) if attack is None else attack.from_logits
        self.loss = loss
        self._classification_loss = self._resolve(loss)

    def prepare(self, model: Any, x: Any, y: Any, seed: Any) -> tuple[Any, Any]:
        """Works outside of the gradient tape.

        Args:
            model: the classifier.
            x: tensor, shape `(batch_size, ...)`.
            y: labels, as passed to `fit`.
            seed: tensor, another one in each step.

        Returns:
            The images that the step's predictions shall be computed from, and anything that
            `training_loss` will find as `step.prepared`.
        """
        return x, None

    def forward(self, step: Step) -> Any:
        """The step's predictions, under the tape; may leave something in `step.kept`."""
        return step.predict(step.x)

    def trained_part(self, model: Any) -> Any:
        """What a step runs in training mode: the model, or a layer of it."""
        return model

    def check(self, model: Any, x: Any, y: Any) -> None:
        """Raises a `ValueError` for a first batch of arrays that cannot be trained on."""
        if self.attack is not None:
            self.attack.check(model, x, y)
        if self.mask is not None:
            check_broadcasts("mask", self.mask.shape, x.shape[1:])

    def training_loss(self, step: Step, y_true: Any, y_pred: Any) -> Any:
        """The loss for each example, shape `(batch_size,)`; implemented by subclasses."""
        raise NotImplementedError(f"{type(self).__name__} must implement `training_loss`.")

    def call(self, y_true: Any, y_pred: Any) -> Any:
        step = current_step()
        if step is None or (step.training and step.loss is not self):
            raise ValueError(
                f"{type(self).__name__} runs the model again and must know it: wrap the model and "
                "pass the loss itself, `keras_robust.RobustModel(model).compile(loss=loss)`; train "
                "it with `fit` or `train_on_batch`. Received: the loss in another model, or inside "
                "of a function, a metric or another loss"
            )
        if step.training:
            return self.training_loss(step, y_true, y_pred)
        return self.classification_loss(y_true, y_pred)

    def current_attack(self, x: Any) -> Attack:
        """The attack with its radii as they are in this step, to be run on `x`."""
        step = current_step()
        return self.attack.at(None if step is None else step.iterations, as_working_dtype(x).dtype)

    def perturbed(self, model: Any, x: Any, y: Any, seed: Any) -> Any:
        """The adversarial images that the attack makes in this step."""
        return self.current_attack(x).perturb(model, x, y, seed, self.mask)

    def classification_loss(self, y_true: Any, y_pred: Any) -> Any:
        """The plain loss for each example, shape `(batch_size,)`."""
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

    def _resolve(self, loss: Any) -> keras.losses.Loss | None:
        """The loss as an object that agrees with the attack on what the model returns."""
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

    def get_config(self) -> dict[str, Any]:
        return {
            "attack": self.attack and keras.saving.serialize_keras_object(self.attack),
            "loss": self.loss
            if self.loss is None or isinstance(self.loss, str)
            else keras.saving.serialize_keras_object(self.loss),
            **super().get_config(),
        }

    @property
    def saved_mask(self) -> Any:
        """What a configuration has for the mask."""
        return None if self.mask is None else self.mask.astype(int).tolist()

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "ModelLoss":
        objects = {
            name: keras.saving.deserialize_keras_object(config[name])
            for name in ("attack", "loss")
            if isinstance(config.get(name), dict)
        }
        return cls(**{**config, **objects})
