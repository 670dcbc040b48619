"""Selection and validation of the points of a template."""

from typing import Any

import numpy as np

from keras_robust.ops.nearest import check_distances_exist


def choose_template(labels: np.ndarray, size: int, seed: int) -> np.ndarray:
    """Draws the rows of `size` labeled examples, at least one of each class."""
    order = np.random.default_rng(seed).permutation(np.flatnonzero(labels >= 0))
    return np.sort(first_in_order(labels, order, size))


def first_in_order(labels: np.ndarray, order: np.ndarray, size: int) -> np.ndarray:
    """Returns `size` rows of `order`: the first row of each class, then the others in order."""
    firsts = np.unique(labels[order], return_index=True)[1]
    others = np.setdiff1d(np.arange(len(order)), firsts)
    return order[np.concatenate([firsts, others])[:size]]


def choose_unlabeled(labels: np.ndarray, size: int, seed: int) -> np.ndarray:
    """Draws the rows of `size` unlabeled examples."""
    return np.sort(np.random.default_rng(seed).permutation(np.flatnonzero(labels < 0))[:size])


def sparse_with_unlabeled(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Converts labels to integers. A one-hot vector of zeros becomes -1."""
    if labels.ndim == 2 and labels.shape[1] == num_classes > 1:
        if np.isnan(labels).any():
            raise ValueError(
                "Argument `labels` must hold numbers. Received: one-hot vectors with NaN"
            )
        labels = np.where(labels.any(axis=1), labels.argmax(axis=1), -1)
    return labels.reshape(-1)


def check_features(features: np.ndarray, labels: np.ndarray, width: int | None) -> None:
    """Raises a `ValueError` if the features cannot form a template.

    `width` is the expected number of features, or `None` if it is not known yet.
    """
    if (
        features.ndim != 2
        or not len(features) == len(labels) > 0
        or width not in (None, features.shape[1])
    ):
        raise ValueError(
            "Arguments `features` and `labels` must have shapes `(num_points, "
            f"{width or 'features'})` and `(num_points,)`, with at least one point. "
            f"Received: shapes {features.shape} and {labels.shape}"
        )
    check_distances_exist("features", features)


def check_template_labels(
    labels: np.ndarray, num_classes: int, size: int, unlabeled_size: int
) -> None:
    """Raises a `ValueError` if the integer labels cannot form a template of these sizes."""
    low, high = labels.min(), labels.max()
    if not np.issubdtype(labels.dtype, np.integer) or low < -1 or high >= num_classes:
        raise ValueError(
            f"Argument `labels` must hold integers below {num_classes}, or -1 for unlabeled "
            f"points. Received: labels from {low} to {high} of dtype {labels.dtype}"
        )
    missing = sorted(set(range(num_classes)) - set(labels.tolist()))
    if missing:
        raise ValueError(
            "Argument `labels` must hold every class, because the head cannot predict a class that "
            "is missing from its template. "
            f"Received: labels without the classes {missing}"
        )
    num_labeled = int((labels >= 0).sum())
    if num_labeled < size:
        raise ValueError(
            f"Argument `labels` must hold at least `template_size`, {size}, labeled points. "
            f"Received: {num_labeled} labeled points"
        )
    if len(labels) - num_labeled < unlabeled_size:
        raise ValueError(
            f"Argument `labels` must hold at least `unlabeled_size`, {unlabeled_size}, points "
            f"labeled -1. Received: {len(labels) - num_labeled} unlabeled points"
        )


def check_distances(shape: Any, expected: tuple[int, int], num_points: int) -> None:
    """Raises a `ValueError` if the distances are not those of one list for each template point.

    `expected` is `(template_size, num_neighbors)`, and `num_points` is the number of points given.
    """
    if shape != expected or num_points != expected[0]:
        raise ValueError(
            f"Argument `distances` must have the shape {expected}, for exactly {expected[0]} "
            f"points. Received: shape {shape} and {num_points} points"
        )
