"""Images that an attack has perturbed, to be shown."""

from typing import NamedTuple

import numpy as np


class Samples(NamedTuple):
    """Some of the images on which an attack has succeeded.

    Args:
        images: float array, the originals.
        perturbed: float array, of the same shape.
        labels: int array, the true classes.
        classes: int array, the classes predicted for `perturbed`.
    """

    images: np.ndarray
    perturbed: np.ndarray
    labels: np.ndarray
    classes: np.ndarray
