"""What attacks compute with: images in full precision, and seeds."""

import random
from typing import Any

import numpy as np
from keras import ops

from keras_robust import backend
from keras_robust.model.arrays import check_floating
from keras_robust.ops.precision import working_dtype


def working(x: Any) -> Any:
    """A tensor in the precision that attacks compute in."""
    x = ops.convert_to_tensor(x)
    check_floating(x)
    return ops.cast(x, working_dtype(x.dtype))


def as_seed(seed: Any) -> Any:
    """A seed of `keras_robust.backend`, from an integer or from one."""
    return backend.make_seed(int(seed)) if isinstance(seed, int | np.integer) else seed


def drawn_seed() -> Any:
    """A seed from Python's random numbers."""
    return backend.make_seed(random.randint(1, 2**31 - 1))
