"""The Fisher-information regularizer."""

import math

import keras
from keras import ops

from keras_robust import validation
from keras_robust.losses import weight as weights
from keras_robust.losses.additive import Additive
from keras_robust.losses.step import current_step
from keras_robust.ops.labels import is_one_hot
from keras_robust.ops.logits import class_scores
from keras_robust.types import Config, Labels, Scheduled, Scores, Tensor

# Keeps sums over a batch from overflowing in float32.
_MAX_INVERSE = 1e30


@keras.saving.register_keras_serializable(package="keras_robust")
class FisherInformation(Additive, keras.losses.Loss):
    """Adds a penalty on the Fisher information of the output to the cross-entropy.

        L = (1 - zeta) CE(z, y) + zeta * cut(sum_j 1 / p_j),    p = softmax(z)

    `sum_j 1 / p_j` is the trace of the output's Fisher information matrix with respect to the
    probabilities. It is an upper bound of the matrix's largest eigenvalue. Its minimum is `K^2`,
    where all `K` classes are equally likely, so the penalty discourages overconfident predictions.
    The loss needs no attack and trains any Keras model that returns logits.

    `cut` limits the growth of the penalty: `cut(t) = t` up to `max_inverse = M`, and
    `cut(t) = M (1 + log(t / M))` beyond. It has a continuous derivative, and beyond `M` it grows
    with the logits instead of their exponential. `1 / p_j = exp(logsumexp(z) - z_j)` is computed
    without overflow.

    In a `kr.RobustModel`, `evaluate` and `val_loss` report the cross-entropy alone, as for every
    loss there.

    Args:
        weight: number from 0 to 1, `keras.Variable`, or
            `keras.optimizers.schedules.LearningRateSchedule`. The weight `zeta` of the penalty. A
            variable or schedule needs a `kr.RobustModel`. Defaults to `0.0025`.
        max_inverse: float from 1 to 1e30. The value above which the penalty of an example grows
            logarithmically. Defaults to `10000.0`.
        reduction: as in `keras.losses.Loss`. Defaults to `"sum_over_batch_size"`.
        name: string. Defaults to `None`: derived from the class name.

    Call arguments:
        y_true: integer labels, shape `(batch_size,)` or `(batch_size, 1)`, or one-hot labels,
            shape `(batch_size, num_classes)`.
        y_pred: logits, shape `(batch_size, num_classes)`, or the single logit of a binary
            classifier, shape `(batch_size, 1)`.

    Raises:
        ValueError: if `weight` is not from 0 to 1, or `max_inverse` not from 1 to 1e30.

    Example:

    >>> import keras, numpy as np, keras_robust as kr
    >>> x = np.random.rand(64, 8, 8, 1).astype("float32")
    >>> y = np.random.randint(0, 10, 64)
    >>> model = keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(10)])
    >>> model.compile(optimizer="adam", loss=kr.losses.FisherInformation(weight=0.0025))
    >>> history = model.fit(x, y, verbose=0)

    Departure from the papers: they do not cut the trace. With one logit 20 below the largest, the
    uncut penalty and its gradient are about 5e8, and a single training step ruins the model.
    `max_inverse=1e30` disables the cut for practically all values that float32 can hold.

    Reference:

    - Schwartz and Ditzler, Bolstering Adversarial Robustness with Latent Disparity
      Regularization, eq. 2, which follows [Shen et al., 2019](https://arxiv.org/abs/1909.06137).
      `weight=0.0025` is the value in their text; their code uses a tenth of it
    """

    from_logits = True

    def __init__(
        self,
        weight: Scheduled = 0.0025,
        max_inverse: float = 10000.0,
        reduction: str | None = "sum_over_batch_size",
        name: str | None = None,
    ) -> None:
        super().__init__(name=name, reduction=reduction)
        self.weight = weights.check_weight("weight", weight, maximum=1.0)
        self.max_inverse = validation.check_number(
            "max_inverse", max_inverse, minimum=1.0, maximum=_MAX_INVERSE
        )

    def call(self, y_true: Labels, y_pred: Scores) -> Tensor:
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

    def get_config(self) -> Config:
        return {
            "weight": weights.saved(self.weight),
            "max_inverse": self.max_inverse,
            **super().get_config(),
        }
