"""Regular simplices."""

import numpy as np


def simplex_gram(num_classes: int, scale: float) -> np.ndarray:
    """Computes the Gram matrix of the K vertices of a regular simplex of radius `scale` around 0.

    `Sigma_ij = s^2` where `i = j`, else `s^2 / (1 - K)` (Xu et al., 2020, eq. 3.7). Among all sets
    of K vectors of length s, these vertices maximize the smallest angle.

    Args:
        num_classes: int, K, at least 2.
        scale: float, s.
    """
    off_diagonal = scale**2 / (1 - num_classes)
    gram = np.full((num_classes, num_classes), off_diagonal)
    np.fill_diagonal(gram, scale**2)
    return gram


def simplex_vertices(num_classes: int, features: int, scale: float) -> np.ndarray:
    """Computes the K vertices of a regular simplex of radius `scale` around 0, as rows.

    The first vertex lies on the first axis. The coordinates of each further vertex follow in turn
    from its inner products with the vertices before it, and the rest of its length lies on the next
    axis (Pang et al., 2018, algorithm 1). The Gram matrix of the vertices is
    `simplex_gram(num_classes, scale)`.

    Args:
        num_classes: int, K, at least 2.
        features: int, the number of coordinates, at least K - 1.
        scale: float.
    """
    vertices = np.zeros((num_classes, max(features, num_classes)))
    for i in range(num_classes):
        for j in range(i):
            product = vertices[i] @ vertices[j]
            vertices[i, j] = (1 / (1 - num_classes) - product) / vertices[j, j]
        if i < num_classes - 1:
            vertices[i, i] = np.sqrt(1 - vertices[i] @ vertices[i])
    return scale * vertices[:, :features]
