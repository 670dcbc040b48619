"""Evaluation data as checked NumPy arrays."""

from typing import Any

import numpy as np
from keras import ops

from keras_robust import validation
from keras_robust.model import classifier as inference
from keras_robust.ops.labels import is_one_hot


def as_arrays(x: Any, y: Any = None) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels as arrays, from arrays, tensors or a `tf.data.Dataset` of pairs.

    A data set may be batched or not: it is not where its labels are scalars.
    """
    if hasattr(x, "as_numpy_iterator"):
        if y is not None:
            raise ValueError(
                "Argument `y` must be None where `x` is a data set: it holds the labels. "
                f"Received: y of type {type(y).__name__}"
            )
        pairs = list(x.as_numpy_iterator())
        if not pairs or not isinstance(pairs[0], tuple) or len(pairs[0]) < 2:
            raise ValueError(
                "A data set passed as `x` must hold at least one pair of images and labels. "
                f"Received: x={x}"
            )
        join = np.stack if np.ndim(pairs[0][1]) == 0 else np.concatenate
        return join([pair[0] for pair in pairs]), join([pair[1] for pair in pairs])
    if y is None:
        raise ValueError("Argument `y` must be given where `x` is an array. Received: y=None")
    return ops.convert_to_numpy(x), ops.convert_to_numpy(y)


def predicted_classes(model: Any, x: np.ndarray, batch_size: int) -> np.ndarray:
    """The class with the highest score for each example."""
    classes = []
    for indices in model_batches(model, np.arange(len(x)), batch_size):
        outputs = inference.outputs(model, x[indices])
        validation.check_outputs(outputs, len(indices), from_logits=None)
        classes.append(outputs.argmax(axis=1))
    return np.concatenate(classes)[: len(x)]


def model_batches(model: Any, indices: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """Batches of one size; where answers depend on the batch, without anything added to them."""
    if inference.depends_on_batch(model):
        return np.split(indices, range(batch_size, len(indices), batch_size))
    return padded_batches(indices, batch_size)


def padded_batches(indices: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """Batches of one size, so that each function is compiled once: the last index fills up."""
    count = -(-len(indices) // batch_size)
    padding = np.repeat(indices[-1:], count * batch_size - len(indices))
    return np.split(np.concatenate([indices, padding]), count) if count else []


def sparse(y: np.ndarray) -> np.ndarray:
    """Integer labels, shape `(num_examples,)`."""
    return y.argmax(axis=1) if is_one_hot(y) else y.reshape(-1)
