"""The Max-Mahalanobis centre loss."""

import keras
from keras import ops

from keras_robust.losses.additive import Additive
from keras_robust.ops.labels import is_one_hot
from keras_robust.types import Labels, Scores, Tensor
from keras_robust.validation import no_classifier


@keras.saving.register_keras_serializable(package="keras_robust")
class MaxMahalanobis(Additive, keras.losses.Loss):
    """Pulls the features of each image to the centre of its class.

        L = ||z - mu_y||^2

    This is the negative of the label's logit of a `kr.layers.MaxMahalanobisClassifier`, with which
    the model must end. The loss has its minimum, 0, at `mu_y`. The cross-entropy of these logits
    has no such minimum: it keeps pushing the features away from the other centres. The loss needs
    no attack and trains any Keras model with this head.

    For MMC + AT of the literature, combine it with adversarial training:
    `kr.losses.AdversarialTraining(attack, loss=kr.losses.MaxMahalanobis())`. The attack maximizes
    the cross-entropy of the logits `-||z - mu_j||^2` and not this loss, because a step away from
    all centres increases this loss without changing the predicted class.

    Args:
        reduction: as in `keras.losses.Loss`. Defaults to `"sum_over_batch_size"`.
        name: string. Defaults to `None`: derived from the class name.

    Call arguments:
        y_true: integer labels, shape `(batch_size,)` or `(batch_size, 1)`, or one-hot labels,
            shape `(batch_size, num_classes)`.
        y_pred: the head's logits, shape `(batch_size, num_classes)`.

    Raises:
        ValueError: if `reduction` is unknown; when called with fewer than two logits per example.

    Example:

    >>> import keras, numpy as np, keras_robust as kr
    >>> x = np.random.rand(64, 8, 8, 1).astype("float32")
    >>> y = np.random.randint(0, 10, 64)
    >>> model = keras.Sequential([
    ...     keras.layers.Flatten(), keras.layers.Dense(32), kr.layers.MaxMahalanobisClassifier(10)])
    >>> model.compile(optimizer="adam", loss=kr.losses.MaxMahalanobis(), metrics=["accuracy"])
    >>> history = model.fit(x, y, verbose=0)

    Departure from the paper: the paper uses half of this loss, a factor that the learning rate can
    absorb.

    Reference:

    - [Pang et al., 2020](https://arxiv.org/abs/1905.10626), section 4
    """

    from_logits = True

    def __init__(
        self, reduction: str | None = "sum_over_batch_size", name: str | None = None
    ) -> None:
        super().__init__(name=name, reduction=reduction)

    def call(self, y_true: Labels, y_pred: Scores) -> Tensor:
        if len(y_pred.shape) != 2 or y_pred.shape[1] == 1:
            raise no_classifier(
                "`MaxMahalanobis` needs the logits of a `kr.layers.MaxMahalanobisClassifier` for "
                "at least two classes.",
                f"predictions of shape {tuple(y_pred.shape)}",
            )
        if is_one_hot(y_true):
            is_label = ops.cast(y_true, y_pred.dtype)
        else:
            labels = ops.cast(ops.reshape(y_true, (-1,)), "int32")
            is_label = ops.one_hot(labels, y_pred.shape[-1], dtype=y_pred.dtype)
        return -ops.sum(is_label * y_pred, axis=-1)
