"""The Max-Mahalanobis centre loss."""

from typing import Any

import keras
from keras import ops

from keras_robust.losses.additive import Additive
from keras_robust.ops.labels import is_one_hot
from keras_robust.validation import no_classifier


@keras.saving.register_keras_serializable(package="keras_robust")
class MaxMahalanobis(Additive, keras.losses.Loss):
    """Pulls the features of each image to the centre of its class.

        L = ||z - mu_y||^2

    which is minus the label's logit of a `kr.layers.MaxMahalanobisClassifier`, with which the
    model must end. Other than the cross-entropy of these logits it does not push features on and
    on from the other centres: it has its least value, 0, at `mu_y`. No attack is needed, and any
    Keras model with that head can be trained with it.

    Combine it with adversarial training, `kr.losses.AdversarialTraining(attack,
    loss=kr.losses.MaxMahalanobis())`, which is MMC + AT in the literature. Its attack climbs the
    cross-entropy of the logits `-||z - mu_j||^2`, not this loss, which a step away from all
    centres would raise without a change of class.

    Args:
        reduction: as in `keras.losses.Loss`. Defaults to `"sum_over_batch_size"`.
        name: string. Defaults to `None`: the class's name.

    Call arguments:
        y_true: integer labels, shape `(batch_size,)` or `(batch_size, 1)`, or one-hot labels,
            shape `(batch_size, num_classes)`.
        y_pred: the head's logits, shape `(batch_size, num_classes)`.

    Raises:
        ValueError: if `reduction` is unknown; when called on one output.

    Example:

    >>> import keras, numpy as np, keras_robust as kr
    >>> x = np.random.rand(64, 8, 8, 1).astype("float32")
    >>> y = np.random.randint(0, 10, 64)
    >>> model = keras.Sequential([
    ...     keras.layers.Flatten(), keras.layers.Dense(32), kr.layers.MaxMahalanobisClassifier(10)])
    >>> model.compile(optimizer="adam", loss=kr.losses.MaxMahalanobis(), metrics=["accuracy"])
    >>> history = model.fit(x, y, verbose=0)

    Departure from the paper: it has half of this, which is a matter of the learning rate.

    Reference:

    - [Pang et al., 2020](https://arxiv.org/abs/1905.10626), section 4
    """

    from_logits = True

    def __init__(
        self, reduction: str | None = "sum_over_batch_size", name: str | None = None
    ) -> None:
        super().__init__(name=name, reduction=reduction)

    def call(self, y_true: Any, y_pred: Any) -> Any:
        if len(y_pred.shape) != 2 or y_pred.shape[1] == 1:
            raise no_classifier(
                "`MaxMahalanobis` takes the logits of a `kr.layers.MaxMahalanobisClassifier`, at "
                "least two for each example.",
                f"predictions of shape {tuple(y_pred.shape)}",
            )
        if is_one_hot(y_true):
            is_label = ops.cast(y_true, y_pred.dtype)
        else:
            labels = ops.cast(ops.reshape(y_true, (-1,)), "int32")
            is_label = ops.one_hot(labels, y_pred.shape[-1], dtype=y_pred.dtype)
        return -ops.sum(is_label * y_pred, axis=-1)
