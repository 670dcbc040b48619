"""Batches of one size, so that a model is compiled for one size only."""

from collections.abc import Callable

import numpy as np
from keras import ops

from keras_robust.types import Tensor


def padded_batches(indices: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """Splits indices into batches of one size, so that each function is compiled once.

    The last batch is filled up with its last index.
    """
    count = -(-len(indices) // batch_size)
    padding = np.repeat(indices[-1:], count * batch_size - len(indices))
    return np.split(np.concatenate([indices, padding]), count) if count else []


def in_batches(
    function: Callable[[np.ndarray], Tensor], num_examples: int, batch_size: int
) -> np.ndarray:
    """Returns `function(indices)` for all examples, computed in batches of one size."""
    batches = padded_batches(np.arange(num_examples), batch_size)
    parts = [ops.convert_to_numpy(function(indices)) for indices in batches]
    return np.concatenate(parts)[:num_examples]
