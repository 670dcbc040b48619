"""The Fisher-information regularizer."""

import math
from typing import Any

import keras
from keras import ops

from keras_robust import validation
from keras_robust.losses import weight as weights
from keras_robust.losses.additive import Additive
from keras_robust.losses.step import current_step
from keras_robust.ops.labels import is_one_hot
from keras_robust.ops.logits import class_scores

# Sums over a batch of it must not overflow in float32.
_MAX_INVERSE = 1e30


@keras.saving.register_keras_serializable(package="keras_robust")
class FisherInformation(Additive, keras.losses.Loss):
    """Cross-entropy, and a penalty on the Fisher information of the output.

        L = (1 - zeta) CE(z, y) + zeta * cut(sum_j 1 / p_j),    p = softmax(z)

    `sum_j 1 / p_j` is the trace of the Fisher information matrix of the output in the
    probabilities, an upper bound of its largest eigenvalue: it is least, `K^2`, where all `K`
    classes are equally likely. It keeps a classifier from being sure of itself. No attack is
    needed, and any Keras model that returns logits can be trained with it.

    Without overflow, `1 / p_j = exp(logsumexp(z) - z_j)`, and `cut(t) = t` up to
    `max_inverse = M`, beyond it `M (1 + log(t / M))`, which goes on smoothly and grows with the
    logits rather than with their exponential. In a `kr.RobustModel`, `evaluate` and `val_loss`
    are the cross-entropy alone, as for every loss there.

    Args:
        weight: number from 0 to 1, `keras.Variable`, or
            `keras.optimizers.schedules.LearningRateSchedule`, zeta. The last two need a
            `kr.RobustModel`. Defaults to `0.0025`.
        max_inverse: float, at least 1. From where on the penalty of an example grows slowly.
            Defaults to `10000.0`.
        reduction: as in `keras.losses.Loss`. Defaults to `"sum_over_batch_size"`.
        name: string. Defaults to `None`: the class's name.

    Call arguments:
        y_true: integer labels, shape `(batch_size,)` or `(batch_size, 1)`, or one-hot labels,
            shape `(batch_size, num_classes)`.
        y_pred: logits, shape `(batch_size, num_classes)`, or one of two classes,
            `(batch_size, 1)`.

    Raises:
        ValueError: if `weight` is not from 0 to 1, or `max_inverse` less than 1.

    Example:

    >>> import keras, numpy as np, keras_robust as kr
    >>> x = np.random.rand(64, 8, 8, 1).astype("float32")
    >>> y = np.random.randint(0, 10, 64)
    >>> model = keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(10)])
    >>> model.compile(optimizer="adam", loss=kr.losses.FisherInformation(weight=0.0025))
    >>> history = model.fit(x, y, verbose=0)

    Departure from the papers: they do not cut. A classifier that is sure of itself, with a logit
    20 below the largest, has a penalty of 5e8 and a gradient as large: one step of training ruins
    it. With `max_inverse=1e30` nothing is cut that float32 could hold.

    Reference:

    - Schwartz and Ditzler, Bolstering Adversarial Robustness with Latent Disparity
      Regularization, eq. 2, who have it from [Shen et al., 2019](https://arxiv.org/abs/1909.06137).
      `weight=0.0025` is their text's; their code has a tenth of it
    """

    from_logits = True

    def __init__(
        self,
        weight: Any = 0.0025,
        max_inverse: float = 10000.0,
        reduction: str | None = "sum_over_batch_size",
        name: str | None = None,
    ) -> None:
        super().__init__(name=name, reduction=reduction)
        self.weight = weights.check_weight("weight", weight, maximum=1.0)
        self.max_inverse = validation.check_number(
            "max_inverse", max_inverse, minimum=1.0, maximum=_MAX_INVERSE
        )

    def call(self, y_true: Any, y_pred: Any) -> Any:
        y_pred = class_scores(y_pred)
        log_p = ops.log_softmax(y_pred)
        if is_one_hot(y_true):
            cross_entropy = -ops.sum(ops.cast(y_true, log_p.dtype) * log_p, axis=-1)
        else:
            cross_entropy = keras.losses.sparse_categorical_crossentropy(
                ops.reshape(y_true, (-1,)), y_pred, from_logits=True
            )
        step = current_step()
        if step is not None and not step.training:
            return cross_entropy
        zeta = weights.current(self.weight, maximum=1.0)
        log_trace = ops.logsumexp(-log_p, axis=-1)
        log_limit = math.log(self.max_inverse)
        trace = ops.exp(ops.minimum(log_trace, log_limit))
        trace = trace + self.max_inverse * ops.maximum(log_trace - log_limit, 0.0)
        return (1 - zeta) * cross_entropy + zeta * trace

    def get_config(self) -> dict[str, Any]:
        return {
            "weight": weights.saved(self.weight),
            "max_inverse": self.max_inverse,
            **super().get_config(),
        }
