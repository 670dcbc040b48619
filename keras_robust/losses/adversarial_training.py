"""Adversarial training."""

import keras

from keras_robust.attacks import Attack
from keras_robust.losses.model_loss import ModelLoss
from keras_robust.losses.step import Step
from keras_robust.types import Config, Images, Labels, Loss, Model, Scores, Seed, Tensor


@keras.saving.register_keras_serializable(package="keras_robust")
class AdversarialTraining(ModelLoss):
    """Trains on adversarial images instead of clean ones.

        min_theta E_(x, y) max_{||x' - x|| <= epsilon} L(theta, x', y)

    The `attack` approximates the maximum on the model in inference mode. The predictions of a
    training step are computed on `x'`. During `fit`, `loss` and `accuracy` are therefore
    adversarial, while `val_loss` and `val_accuracy` are clean. The callback
    `kr.callbacks.RobustAccuracy` adds `val_robust_accuracy`. A step costs the gradients of the
    attack plus one ordinary step.

    Args:
        attack: untargeted `kr.attacks.Attack`. Its `bounds` and `epsilon` are in units of `x`. Its
            `epsilon` and `step_size` may be a `keras.Variable` or a
            `keras.optimizers.schedules.LearningRateSchedule`, for example to increase the radius
            during training.
        loss: the classification loss: a `keras.losses.Loss`, or the name of one. Defaults to
            `None`: cross-entropy, sparse or categorical depending on the labels. The attack does
            not use it: it maximizes its own objective, which is usually the cross-entropy.
        reduction: as in `keras.losses.Loss`. Defaults to `"sum_over_batch_size"`.
        name: string. Defaults to `None`: derived from the class name.
        mask: array of 0s and 1s that broadcasts to one image. The attack may change only the
            entries where the mask is 1. Defaults to `None`: all entries.

    Raises:
        ValueError: if `attack` is not an untargeted attack; if `loss` and `attack` disagree on
            `from_logits`; when called by a model that is not a `kr.RobustModel`.

    Example:

    >>> import keras, numpy as np, keras_robust as kr
    >>> x = np.random.rand(64, 8, 8, 1).astype("float32")
    >>> y = np.random.randint(0, 10, 64)
    >>> classifier = keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(10)])
    >>> model = kr.RobustModel(classifier)
    >>> attack = kr.attacks.PGD(epsilon=8 / 255, num_steps=7)
    >>> model.compile(optimizer="adam", loss=kr.losses.AdversarialTraining(attack))
    >>> history = model.fit(x, y, verbose=0)

    Reference:

    - [Madry et al., 2018](https://arxiv.org/abs/1706.06083), eq. 2.1
    """

    def __init__(
        self,
        attack: Attack,
        loss: Loss = None,
        reduction: str | None = "sum_over_batch_size",
        name: str | None = None,
        mask: Tensor = None,
    ) -> None:
        super().__init__(attack, loss, reduction, name, mask=mask)

    def prepare(self, model: Model, x: Images, y: Labels, seed: Seed) -> tuple[Tensor, Tensor]:
        return self.perturbed(model, x, y, seed), None

    def training_loss(self, step: Step, y_true: Labels, y_pred: Scores) -> Tensor:
        return self.classification_loss(y_true, y_pred)

    def get_config(self) -> Config:
        return {"mask": self.saved_mask, **super().get_config()}
