"""Regular simplices."""

import numpy as np


def simplex_gram(num_classes: int, scale: float) -> np.ndarray:
    """Gram matrix of the K vertices of a regular simplex of radius `scale` around 0.

    `Sigma_ij = s^2` where `i = j`, else `s^2 / (1 - K)` (paper 003, eq. 3.7): of all sets of K
    vectors of length s, these have the largest smallest angle.

    Args:
        num_classes: int, K, at least 2.
        scale: float, s.
    """
    off_diagonal = scale**2 / (1 - num_classes)
    gram = np.full((num_classes, num_classes), off_diagonal)
    np.fill_diagonal(gram, scale**2)
    return gram
