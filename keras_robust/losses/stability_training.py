"""Stability training."""

import keras
import numpy as np
from keras import ops

from keras_robust import backend, validation
from keras_robust.losses import weight as weights
from keras_robust.losses.model_loss import ModelLoss
from keras_robust.losses.step import Step
from keras_robust.model.classifier import Classifier
from keras_robust.ops.logits import kl_divergence, log_probabilities
from keras_robust.types import Config, Images, Labels, Model, Scheduled, Scores, Seed, Tensor


@keras.saving.register_keras_serializable(package="keras_robust")
class StabilityTraining(ModelLoss):
    """Penalizes a difference between the predictions on an image and on a noisy copy of it.

        L = CE(p(x), y) + alpha KL(p(x) || p(x + n)),    n ~ N(0, stddev^2 I)

    `p` is the model's softmax. The gradient flows through both `p(x)` and `p(x + n)`. Each step
    draws new noise, and noisy images are not clipped to any bounds. During `fit`, `accuracy` is
    clean accuracy. A step costs two forward and backward passes.

    Args:
        weight: non-negative number, `keras.Variable`, or
            `keras.optimizers.schedules.LearningRateSchedule`. The weight `alpha` of the divergence.
        stddev: float. Standard deviation of the noise, in units of `x`.
        from_logits: bool. Whether the model returns logits rather than probabilities. Defaults to
            `True`.
        reduction: as in `keras.losses.Loss`. Defaults to `"sum_over_batch_size"`.
        name: string. Defaults to `None`: derived from the class name.

    Raises:
        ValueError: if `weight` is negative, or `stddev` not positive; when called by a model that
            is not a `kr.RobustModel`.

    Example:

    >>> import keras, numpy as np, keras_robust as kr
    >>> x = np.random.rand(64, 8, 8, 1).astype("float32")
    >>> y = np.random.randint(0, 10, 64)
    >>> model = kr.RobustModel(keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(10)]))
    >>> model.compile(optimizer="adam", loss=kr.losses.StabilityTraining(0.01, stddev=0.2))
    >>> history = model.fit(x, y, verbose=0)

    Noise is not an attack: a model that is stable under noise is in general not robust.

    Departure from the paper: the paper writes its divergence out as the cross-entropy of the two
    predictions, `-sum_j p_j(x) log p_j(x + n)`. The cross-entropy exceeds KL by the entropy of
    `p(x)`, so it also rewards confident predictions.

    Reference:

    - [Zheng et al., 2016](https://arxiv.org/abs/1604.04326), section 3
    - Schwartz and Ditzler, Bolstering Adversarial Robustness with Latent Disparity
      Regularization, section VI, which uses it as a baseline with alpha from 0.0001 to 1
    """

    needs_attack = False

    def __init__(
        self,
        weight: Scheduled,
        stddev: float,
        from_logits: bool = True,
        reduction: str | None = "sum_over_batch_size",
        name: str | None = None,
    ) -> None:
        super().__init__(None, None, reduction, name, from_logits)
        self.weight = weights.check_weight("weight", weight)
        self.stddev = validation.check_number("stddev", stddev, exclusive=True)

    def prepare(self, model: Model, x: Images, y: Labels, seed: Seed) -> tuple[Tensor, Tensor]:
        noise = backend.normal(ops.shape(x), seed, "float32")
        noisy = ops.cast(x, "float32") + self.stddev * noise
        return x, ops.cast(noisy, x.dtype)

    def check(self, model: Model, x: np.ndarray, y: np.ndarray) -> None:
        Classifier.of(model).check(x, y, (None, self.from_logits))

    def training_loss(self, step: Step, y_true: Labels, y_pred: Scores) -> Tensor:
        noisy = ops.cast(step.predict(step.prepared), y_pred.dtype)
        divergence = kl_divergence(
            log_probabilities(y_pred, self.from_logits), log_probabilities(noisy, self.from_logits)
        )
        alpha = weights.current(self.weight)
        return self.classification_loss(y_true, y_pred) + alpha * divergence

    def get_config(self) -> Config:
        config = super().get_config()
        return {
            "weight": weights.saved(self.weight),
            "stddev": self.stddev,
            "from_logits": self.from_logits,
            "reduction": config["reduction"],
            "name": config["name"],
        }
