"""Batches of one size, so that a model is compiled for one size only."""

from collections.abc import Callable

import numpy as np
from keras import ops

from keras_robust.types import Tensor


def padded(array: np.ndarray, size: int) -> np.ndarray:
    """Repeats the last entry of an array until the first axis has `size` entries."""
    return np.concatenate([array, np.repeat(array[-1:], size - len(array), axis=0)])


def padded_batches(indices: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """Splits indices into batches of one size, so that each function is compiled once.

    The last batch is filled up with its last index.
    """
    count = -(-len(indices) // batch_size)
    return np.split(padded(indices, count * batch_size), count) if count else []


def in_batches(
    function: Callable[[np.ndarray], Tensor], num_examples: int, batch_size: int
) -> np.ndarray:
    """Returns `function(indices)` for all examples, computed in batches of one size."""
    batches = padded_batches(np.arange(num_examples), batch_size)
    parts = [ops.convert_to_numpy(function(indices)) for indices in batches]
    return np.concatenate(parts)[:num_examples]
