"""Samples of an attack's perturbed images."""

from typing import NamedTuple

import numpy as np


class Samples(NamedTuple):
    """Some of the images on which an attack succeeded.

    Args:
        images: float array, the original images.
        perturbed: float array, the perturbed images, of the same shape.
        labels: int array, the true classes.
        classes: int array, the classes predicted for `perturbed`.
    """

    images: np.ndarray
    perturbed: np.ndarray
    labels: np.ndarray
    classes: np.ndarray
