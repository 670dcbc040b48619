"""Misclassification-aware adversarial training."""

from typing import Any

import keras
from keras import ops

from keras_robust.attacks import Attack
from keras_robust.losses import weight
from keras_robust.losses.model_loss import ModelLoss
from keras_robust.losses.step import Step
from keras_robust.ops.labels import sparse_labels
from keras_robust.ops.logits import kl_divergence, log_probabilities
from keras_robust.types import Config, Images, Labels, Model, Scheduled, Scores, Seed, Tensor

# The constants 1.0001 and 1.0000001 of the authors' code, minus 1.
_MARGIN_OFFSET = 1e-4
_WEIGHT_OFFSET = 1e-7


@keras.saving.register_keras_serializable(package="keras_robust")
class MART(ModelLoss):
    """Adversarial training that puts more weight on misclassified images.

        L = BCE(p(x'), y) + beta * KL(p(x) || p(x')) * (1 - p_y(x))
        BCE(p, y) = -log p_y - log(1 - max_{k != y} p_k)

    `p` is the model's softmax and `x'` the adversarial image that `attack` finds on the model in
    inference mode. The gradient flows through every occurrence of `p(x)` and `p(x')`. As in
    `kr.losses.AdversarialTraining`, predictions are computed on `x'`, so `accuracy` is adversarial
    during `fit`. `evaluate` and `val_loss` report the cross-entropy. A step costs the gradients of
    the attack plus two forward and backward passes.

    Args:
        attack: untargeted `kr.attacks.Attack`. The paper uses `kr.attacks.PGD` with 10 steps. Its
            `bounds` and `epsilon` are in units of `x`.
        beta: non-negative number, `keras.Variable`, or
            `keras.optimizers.schedules.LearningRateSchedule`. Weight of the divergence. Defaults
            to `5.0`.
        reduction: as in `keras.losses.Loss`. Defaults to `"sum_over_batch_size"`.
        name: string. Defaults to `None`: derived from the class name.
        mask: array of 0s and 1s that broadcasts to one image. The attack may change only the
            entries where the mask is 1. Defaults to `None`: all entries.

    Call arguments:
        y_true: integer labels, shape `(batch_size,)` or `(batch_size, 1)`, or one-hot labels,
            shape `(batch_size, num_classes)`. For soft labels, the class with the largest entry is
            used.
        y_pred: logits or probabilities, according to the attack's `from_logits`.

    Raises:
        ValueError: if `attack` is not an untargeted attack; if `beta` is negative; when called by
            a model that is not a `kr.RobustModel`.

    Example:

    >>> import keras, numpy as np, keras_robust as kr
    >>> x = np.random.rand(64, 8, 8, 1).astype("float32")
    >>> y = np.random.randint(0, 10, 64)
    >>> model = kr.RobustModel(keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(10)]))
    >>> attack = kr.attacks.PGD(epsilon=8 / 255, step_size=2 / 255, num_steps=10)
    >>> model.compile(optimizer="adam", loss=kr.losses.MART(attack, beta=5.0))
    >>> history = model.fit(x, y, verbose=0)

    As in the authors' code, 1e-4 is added to `1 - max_{k != y} p_k` and 1e-7 to `1 - p_y(x)`. Both
    differences are computed as the sum of the other classes' probabilities, which avoids
    cancellation.

    Reference:

    - Wang et al., Improving Adversarial Robustness Requires Revisiting Misclassified Examples,
      ICLR 2020, section 3
    """

    def __init__(
        self,
        attack: Attack,
        beta: Scheduled = 5.0,
        reduction: str | None = "sum_over_batch_size",
        name: str | None = None,
        mask: Tensor = None,
    ) -> None:
        super().__init__(attack, None, reduction, name, mask=mask)
        self.beta = weight.check_weight("beta", beta)

    def prepare(self, model: Model, x: Images, y: Labels, seed: Seed) -> tuple[Tensor, Tensor]:
        return self.perturbed(model, x, y, seed), x

    def training_loss(self, step: Step, y_true: Labels, y_pred: Scores) -> Tensor:
        clean = ops.cast(step.predict(step.prepared), y_pred.dtype)
        log_p_clean = log_probabilities(clean, self.from_logits)
        log_p = log_probabilities(y_pred, self.from_logits)
        is_label = ops.one_hot(sparse_labels(y_true), log_p.shape[-1], dtype=log_p.dtype)
        strongest = ops.argmax(log_p - 1e30 * is_label, axis=-1)
        is_strongest = ops.one_hot(strongest, log_p.shape[-1], dtype=log_p.dtype)
        bce = -ops.sum(is_label * log_p, axis=-1) - ops.log(
            _MARGIN_OFFSET + _sum_of_others(log_p, is_strongest)
        )
        kl_weight = _WEIGHT_OFFSET + _sum_of_others(log_p_clean, is_label)
        kl = kl_divergence(log_p_clean, log_p)
        return bce + weight.current(self.beta) * kl * kl_weight

    def get_config(self) -> Config:
        config = super().get_config()
        del config["loss"]
        return {"beta": weight.saved(self.beta), "mask": self.saved_mask, **config}


def _sum_of_others(log_p: Scores, is_class: Tensor) -> Any:
    """Returns the total probability of all other classes."""
    return ops.sum((1 - is_class) * ops.exp(log_p), axis=-1)
