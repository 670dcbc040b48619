"""Checks of images and labels."""

import math
from typing import Any

import keras
import numpy as np

from keras_robust.model.images import LazyImages
from keras_robust.ops.labels import is_one_hot
from keras_robust.types import Images
from keras_robust.validation import no_classifier

_ONE_OUTPUT = "Labels in argument `y` must be 0 and 1, to match the model's one output"


def sparse(y: np.ndarray) -> np.ndarray:
    """Converts labels to integers of shape `(num_examples,)`.

    Raises:
        ValueError: if the labels do not give each example one class.
    """
    check_one_class(y)
    if is_one_hot(y):
        return y.argmax(axis=1)
    return y.reshape(-1) if y.dtype.kind in "iu" else y.reshape(-1).astype("int64")


def check_images(x: np.ndarray | LazyImages) -> tuple[float, float]:
    """Raises a `ValueError` if images are not floating, are empty or are not finite.

    Returns:
        The smallest and the largest value.
    """
    if x.ndim < 2 or x.size == 0:
        raise ValueError(
            "Argument `x` must hold at least one example, with shape `(batch_size, ...)`. "
            f"Received: x.shape={x.shape}"
        )
    check_floating(x)
    low, high = float(x.min()), float(x.max())
    if not (math.isfinite(low) and math.isfinite(high)):
        count = sum(int(np.sum(~np.isfinite(x[i]))) for i in range(len(x)))
        raise ValueError(f"Argument `x` must be finite. Received: {count} NaN or infinite values")
    return low, high


def check_floating(x: Images) -> None:
    """Raises a `ValueError` if an array or a tensor is not floating."""
    if not keras.backend.is_float_dtype(keras.backend.standardize_dtype(x.dtype)):
        raise ValueError(
            "Argument `x` must be floating: an attack changes it by fractions of a unit. Convert "
            "integer images with `x.astype('float32')` (and divide by 255 for bounds of "
            f"(0.0, 1.0)). Received: x.dtype={x.dtype}"
        )


def check_range(x: np.ndarray | LazyImages, bounds: tuple[Any, Any]) -> None:
    """Raises a `ValueError` if images exceed `bounds` by more than rounding errors."""
    shapes = [np.shape(bound) for bound in bounds]
    if any(shapes):
        check_broadcasts("bounds", np.broadcast_shapes(*shapes), x.shape[1:])
        lowest, highest = x.min(axis=0), x.max(axis=0)
    else:
        lowest, highest = np.asarray(x.min()), np.asarray(x.max())
    eps = 4 * float(np.finfo(np.float32).eps) if np.dtype(x.dtype).itemsize >= 4 else 2.0**-7
    finite = [np.where(np.isfinite(bound), np.abs(bound), 0.0) for bound in bounds]
    rounding = eps * np.maximum(*finite)
    if (lowest < bounds[0] - rounding).any() or (highest > bounds[1] + rounding).any():
        raise ValueError(
            "Argument `x` must lie inside the attack's `bounds`: scale the images, or pass the "
            f"range they are in as `bounds`. Received: bounds={bounds}, x.min()={lowest.min():g}, "
            f"x.max()={highest.max():g}"
        )


def check_broadcasts(name: str, shape: tuple[int, ...], example: tuple[int, ...]) -> None:
    """Raises a `ValueError` if an array does not broadcast to one example."""
    try:
        fits = np.broadcast_shapes(shape, example) == tuple(example)
    except ValueError:
        fits = False
    if not fits:
        raise ValueError(
            f"An array as `{name}` must broadcast to one example, shape {tuple(example)}. "
            f"Received: {name} of shape {shape}"
        )


def check_one_class(y: np.ndarray) -> None:
    """Raises a `ValueError` if labels do not give each example one class."""
    if y.ndim not in (1, 2):
        raise no_classifier(
            "Argument `y` must be integer labels of shape `(batch_size,)`, or one-hot labels.",
            f"y.shape={y.shape}",
        )
    is_float = y.dtype.kind == "f" or y.dtype.name == "bfloat16"
    if is_one_hot(y):
        if y.dtype.kind not in "iub" and not is_float:
            raise ValueError(f"Argument `y` must be numeric. Received: y.dtype={y.dtype}")
        rows = np.asarray(y, "float64")
        if np.isnan(rows).any() or (rows < 0).any() or (abs(rows.sum(axis=1) - 1) > 1e-3).any():
            raise no_classifier(
                "One-hot (or smoothed) labels in argument `y` must be non-negative, with rows "
                "that sum to 1.",
                f"y.min()={rows.min():g}, row sums from {rows.sum(axis=1).min():g} to "
                f"{rows.sum(axis=1).max():g}",
            )
    elif y.dtype.kind not in "iub" and not (is_float and _is_0_or_1(y)):
        raise no_classifier(
            "Argument `y` must hold integer labels.", f"y.dtype={y.dtype}, y.shape={y.shape}"
        )


def _is_0_or_1(y: np.ndarray) -> bool:
    return bool(((y == 0) | (y == 1)).all())


def check_labels(y: np.ndarray, num_examples: int, num_outputs: int) -> None:
    """Raises a `ValueError` if labels do not match the images and the model.

    They must be integers in range or one-hot rows. For a model with one output, they must be 0 and
    1, of any dtype.
    """
    if num_outputs == 1 and y.dtype.kind in "if" and (y == -1).any() and np.isin(y, (-1, 1)).all():
        raise ValueError(f"{_ONE_OUTPUT}, not -1 and 1: pass `(y + 1) // 2`. Received: y.min()=-1")
    check_one_class(y)
    if len(y) != num_examples:
        raise ValueError(
            "Arguments `x` and `y` must have the same number of examples. "
            f"Received: {num_examples} in x, {len(y)} in y"
        )
    if num_outputs == 1:
        if is_one_hot(y) or not _is_0_or_1(y):
            raise no_classifier(
                f"{_ONE_OUTPUT}, one number for each example.",
                f"y.shape={y.shape}, y.min()={y.min()}, y.max()={y.max()}",
            )
        return
    if is_one_hot(y):
        if y.shape[1] != num_outputs:
            raise no_classifier(
                "Argument `y` must be integer labels of shape `(batch_size,)` or one-hot labels of "
                f"shape `(batch_size, {num_outputs})`, to match the model's {num_outputs} outputs.",
                f"y.shape={y.shape}",
            )
        return
    if y.dtype.kind not in "iu":
        raise no_classifier(
            f"Argument `y` must hold integer labels, to match the model's {num_outputs} outputs.",
            f"y.dtype={y.dtype}, y.shape={y.shape}",
        )
    if y.min() < 0 or y.max() >= num_outputs:
        raise ValueError(
            f"Labels in argument `y` must be from 0 to {num_outputs - 1}, to match the model's "
            f"{num_outputs} outputs. Received: y.min()={y.min()}, y.max()={y.max()}"
        )
