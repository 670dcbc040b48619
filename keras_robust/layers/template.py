"""Which examples become the template, and which cannot."""

from typing import Any

import numpy as np

from keras_robust.ops.nearest import check_distances_exist


def choose_template(labels: np.ndarray, size: int, seed: int) -> np.ndarray:
    """`size` of the labeled examples, at random, at least one of each class."""
    order = np.random.default_rng(seed).permutation(np.flatnonzero(labels >= 0))
    return np.sort(first_in_order(labels, order, size))


def first_in_order(labels: np.ndarray, order: np.ndarray, size: int) -> np.ndarray:
    """The first example of each class in an order of rows, and of the others the first."""
    firsts = np.unique(labels[order], return_index=True)[1]
    others = np.setdiff1d(np.arange(len(order)), firsts)
    return order[np.concatenate([firsts, others])[:size]]


def choose_unlabeled(labels: np.ndarray, size: int, seed: int) -> np.ndarray:
    """`size` of the unlabeled examples, at random."""
    return np.sort(np.random.default_rng(seed).permutation(np.flatnonzero(labels < 0))[:size])


def sparse_with_unlabeled(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Integers, -1 where a one-hot vector is all 0."""
    if labels.ndim == 2 and labels.shape[1] == num_classes > 1:
        if np.isnan(labels).any():
            raise ValueError(
                "Argument `labels` must hold numbers. Received: one-hot vectors with NaN"
            )
        labels = np.where(labels.any(axis=1), labels.argmax(axis=1), -1)
    return labels.reshape(-1)


def check_features(features: np.ndarray, labels: np.ndarray, width: int | None) -> None:
    """Raises a `ValueError` for features that make no template; `width` is theirs, if known."""
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
    """Raises a `ValueError` for integer labels that make no template of these sizes."""
    low, high = labels.min(), labels.max()
    if not np.issubdtype(labels.dtype, np.integer) or low < -1 or high >= num_classes:
        raise ValueError(
            f"Argument `labels` must hold integers below {num_classes}, -1 for unlabeled "
            f"points. Received: labels from {low} to {high} of dtype {labels.dtype}"
        )
    missing = sorted(set(range(num_classes)) - set(labels.tolist()))
    if missing:
        raise ValueError(
            "Argument `labels` must hold every class: the head could not predict one that its "
            f"template lacks. Received: labels without the classes {missing}"
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
            f"labeled -1. Received: {len(labels) - num_labeled} of them"
        )


def check_distances(shape: Any, expected: tuple[int, int], num_points: int) -> None:
    """Raises a `ValueError` for distances that are not those of the lists of all points."""
    if shape != expected or num_points != expected[0]:
        raise ValueError(
            f"Argument `distances` must have the shape {expected}, and belong to as many points. "
            f"Received: shape {shape}, and {num_points} points"
        )
