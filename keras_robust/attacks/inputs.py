"""What attacks compute with: images in full precision, and seeds."""

import random
from typing import Any

import numpy as np
from keras import ops

from keras_robust import backend
from keras_robust.model.arrays import check_floating
from keras_robust.ops.precision import working_dtype


def as_working_dtype(x: Any) -> Any:
    """A tensor in the precision that attacks compute in."""
    x = ops.convert_to_tensor(x)
    check_floating(x)
    return ops.cast(x, working_dtype(x.dtype))


def as_mask(mask: Any, shape: tuple[int, ...]) -> np.ndarray | None:
    """A bool array of that shape, which takes no memory of its own; `None` for `None`."""
    if mask is None:
        return None
    array = ops.convert_to_numpy(mask)
    if not ((array == 0) | (array == 1)).all():
        raise ValueError(
            "Argument `mask` must hold 0, for values that stay as they are, and 1. "
            f"Received: values from {array.min()} to {array.max()}"
        )
    try:
        return np.broadcast_to(array == 1, shape)
    except ValueError:
        raise ValueError(
            f"Argument `mask` must have a shape that broadcasts to that of `x`, {shape}. "
            f"Received: mask.shape={array.shape}"
        ) from None


def share_of_ones(mask: np.ndarray) -> float:
    """The share of ones in what `as_mask` returns.

    It reads only the array that was broadcast, not each image of a large data set.
    """
    return float(mask[tuple(slice(None if step else 1) for step in mask.strides)].mean())


def as_seed(seed: Any) -> Any:
    """A seed of `keras_robust.backend`, from an integer or from one."""
    return backend.make_seed(int(seed)) if isinstance(seed, int | np.integer) else seed


def drawn_seed() -> Any:
    """A seed from Python's random numbers."""
    return backend.make_seed(random.randint(1, 2**31 - 1))
