"""Class labels in the two forms that Keras accepts."""

from keras import ops

from keras_robust.types import Labels, Tensor
from keras_robust.validation import no_classifier


def is_one_hot(y: Labels) -> bool:
    """Whether labels of the shape of `y` are one-hot rather than integers."""
    return len(y.shape) == 2 and y.shape[-1] > 1


def sparse_labels(y: Labels) -> Tensor:
    """Converts integer labels or one-hot rows to integer labels, shape `(batch_size,)`.

    Args:
        y: tensor, shape `(batch_size,)`, `(batch_size, 1)` or `(batch_size, num_classes)`.
    """
    if len(y.shape) not in (1, 2):
        raise no_classifier(
            "Labels must be numbers, shape `(batch_size,)` or `(batch_size, 1)`, or one-hot rows.",
            f"labels of shape {tuple(y.shape)}",
        )
    return ops.cast(ops.argmax(y, axis=-1) if is_one_hot(y) else ops.reshape(y, (-1,)), "int32")
