"""Conversion of the inputs of attacks: images, masks and seeds."""

import random

import numpy as np
from keras import ops

from keras_robust import backend
from keras_robust.model.checks import check_floating
from keras_robust.ops.precision import working_dtype
from keras_robust.types import Images, Seed, Tensor


def as_working_dtype(x: Images) -> Tensor:
    """Converts `x` to a tensor in the precision in which attacks compute."""
    x = ops.convert_to_tensor(x)
    check_floating(x)
    return ops.cast(x, working_dtype(x.dtype))


def as_mask(mask: Tensor, shape: tuple[int, ...]) -> np.ndarray | None:
    """Converts a mask to a bool array of the given shape. Returns `None` for `None`.

    The array is a broadcast view and takes no memory of its own.
    """
    if mask is None:
        return None
    array = ops.convert_to_numpy(mask)
    if not ((array == 0) | (array == 1)).all():
        raise ValueError(
            "Argument `mask` must hold 0 (the value stays as it is) or 1 (the value may change). "
            f"Received: values from {array.min()} to {array.max()}"
        )
    try:
        return np.broadcast_to(array == 1, shape)
    except ValueError:
        raise ValueError(
            f"Argument `mask` must have a shape that broadcasts to the shape of `x`, {shape}. "
            f"Received: mask.shape={array.shape}"
        ) from None


def share_of_ones(mask: np.ndarray) -> float:
    """Returns the fraction of ones in a mask from `as_mask`.

    Reads only the array that was broadcast, not a copy for each image of a large data set.
    """
    return float(mask[tuple(slice(None if step else 1) for step in mask.strides)].mean())


def as_seed(seed: Seed) -> Seed:
    """Converts an integer to a seed of `keras_robust.backend`. Returns other seeds as they are."""
    return backend.make_seed(int(seed)) if isinstance(seed, int | np.integer) else seed


def drawn_seed() -> Seed:
    """Draws a seed from Python's `random` module."""
    return backend.make_seed(random.randint(1, 2**31 - 1))
