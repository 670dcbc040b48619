"""Checks of what users pass in: `ValueError`s in Keras's form, before any work."""

import math
from collections.abc import Iterable
from typing import Any

import keras
import numpy as np

from keras_robust.ops.labels import is_one_hot


def check_number(
    name: str,
    value: Any,
    *,
    minimum: float = 0.0,
    exclusive: bool = False,
    maximum: float = math.inf,
) -> float:
    """A finite number from `minimum` (more than it if `exclusive`) to `maximum`, as a float."""
    number = isinstance(value, int | float | np.integer | np.floating)
    if (
        not number
        or isinstance(value, bool)
        or not math.isfinite(value)
        or not minimum <= value <= maximum
        or (exclusive and value == minimum)
    ):
        relation = "greater than" if exclusive else "at least"
        limit = f" and at most {maximum:g}" if maximum < math.inf else ""
        raise ValueError(
            f"Invalid value for argument `{name}`. Expected a finite number {relation} "
            f"{minimum:g}{limit}. Received: {name}={value!r}"
        )
    return float(value)


def check_count(name: str, value: Any) -> int:
    """An integer of at least 1."""
    if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < 1:
        raise ValueError(
            f"Invalid value for argument `{name}`. Expected an integer of at least 1. "
            f"Received: {name}={value!r}"
        )
    return int(value)


def check_bounds(bounds: Any) -> tuple[float, float]:
    """A pair of finite floats, ascending."""
    try:
        low, high = (float(bound) for bound in bounds)
        valid = math.isfinite(low) and math.isfinite(high) and low < high
    except (TypeError, ValueError):
        valid = False
    if not valid:
        raise ValueError(
            "Invalid value for argument `bounds`. Expected a pair of finite numbers, the lower "
            f"one first. Received: bounds={bounds!r}"
        )
    return low, high


def check_choice(name: str, value: Any, choices: Iterable[str]) -> str:
    """One of the strings in `choices`."""
    choices = tuple(choices)
    if value not in choices:
        raise ValueError(
            f"Invalid value for argument `{name}`. Expected one of {choices}. "
            f"Received: {name}={value!r}"
        )
    return value


def check_names(name: str, names: Any) -> list[str] | None:
    """A list of at least one name, each once; or `None`."""
    if names is None:
        return None
    found = list(names) if isinstance(names, list | tuple) else []
    if not found or not all(isinstance(v, str) for v in found) or len(set(found)) < len(found):
        raise ValueError(
            f"Argument `{name}` must be a list of names of layers, each once, or None. "
            f"Received: {name}={names!r}"
        )
    return found


def check_images(x: np.ndarray, bounds: tuple[float, float] | None) -> None:
    """Images: floating, not empty, finite, inside `bounds` (but for rounding) where given."""
    if x.ndim < 2 or x.size == 0:
        raise ValueError(
            "Argument `x` must hold at least one example, with shape `(batch_size, ...)`. "
            f"Received: x.shape={x.shape}"
        )
    if not keras.backend.is_float_dtype(keras.backend.standardize_dtype(x.dtype)):
        raise ValueError(
            "Argument `x` must be floating: an attack moves it by fractions of its unit. Convert "
            "integer images with `x.astype('float32')` (and divide by 255 for bounds of "
            f"(0.0, 1.0)). Received: x.dtype={x.dtype}"
        )
    low, high = (float(np.min(x)), float(np.max(x)))
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError(
            f"Argument `x` must be finite. Received: {int(np.sum(~np.isfinite(x)))} NaN or "
            "infinite values"
        )
    if bounds is None:
        return
    rounding = 4 * float(np.finfo(np.float32).eps) * max(abs(bounds[0]), abs(bounds[1]))
    if x.dtype.itemsize < 4:
        rounding = max(abs(bounds[0]), abs(bounds[1])) * 2.0**-7
    if low < bounds[0] - rounding or high > bounds[1] + rounding:
        raise ValueError(
            "Argument `x` must lie inside the attack's `bounds`: scale the images, or pass the "
            f"range they are in as `bounds`. Received: bounds={bounds}, x.min()={low:g}, "
            f"x.max()={high:g}"
        )


def check_labels(y: np.ndarray, num_examples: int, num_classes: int) -> None:
    """Labels: integers in range, or one-hot rows; one for each example."""
    one_hot = is_one_hot(y)
    if y.ndim not in (1, 2) or (one_hot and y.shape[1] != num_classes):
        raise ValueError(
            "Argument `y` must be integer labels of shape `(batch_size,)` or one-hot labels of "
            f"shape `(batch_size, {num_classes})`, to match the model's {num_classes} outputs. "
            f"Received: y.shape={y.shape}"
        )
    if len(y) != num_examples:
        raise ValueError(
            "Arguments `x` and `y` must have the same number of examples. "
            f"Received: {num_examples} in x, {len(y)} in y"
        )
    if one_hot:
        if y.dtype.kind not in "iufb" and y.dtype.name != "bfloat16":
            raise ValueError(f"Argument `y` must be numeric. Received: y.dtype={y.dtype}")
        rows = np.asarray(y, "float64")
        if np.isnan(rows).any() or (rows < 0).any() or (abs(rows.sum(axis=1) - 1) > 1e-3).any():
            raise ValueError(
                "One-hot (or smoothed) labels in argument `y` must be non-negative, with rows "
                f"that sum to 1. Received: y.min()={rows.min():g}, row sums from "
                f"{rows.sum(axis=1).min():g} to {rows.sum(axis=1).max():g}"
            )
        return
    if y.dtype.kind not in "iu":
        raise ValueError(
            f"Argument `y` must hold integer labels. Received: y.dtype={y.dtype}, y.shape={y.shape}"
        )
    if y.min() < 0 or y.max() >= num_classes:
        raise ValueError(
            f"Labels in argument `y` must be from 0 to {num_classes - 1}, to match the model's "
            f"{num_classes} outputs. Received: y.min()={y.min()}, y.max()={y.max()}"
        )


def check_outputs(outputs: np.ndarray, num_examples: int, from_logits: bool | None) -> None:
    """A classifier's outputs: one row of at least two finite numbers for each example.

    They must also be what `from_logits` says, unless it is `None`.
    """
    if outputs.ndim != 2 or outputs.shape[0] != num_examples or outputs.shape[1] < 2:
        raise ValueError(
            "The model must return one row of at least two class scores for each example (a "
            "binary classifier needs two outputs). Received: outputs of shape "
            f"{outputs.shape} for {num_examples} examples"
        )
    if not np.isfinite(outputs).all():
        raise ValueError(
            "The model must return finite outputs. Received: "
            f"{int(np.sum(~np.isfinite(outputs)))} NaN or infinite values for {num_examples} "
            "examples"
        )
    if from_logits is None:
        return
    sums = outputs.astype("float64").sum(axis=1)
    are_probabilities = bool((outputs >= 0).all() and (abs(sums - 1) < 1e-2).all())
    if from_logits and are_probabilities:
        raise ValueError(SOFTMAX_MESSAGE)
    if not from_logits and not are_probabilities:
        raise ValueError(
            "`from_logits=False` was given, but the model's outputs are no probabilities. Pass "
            f"`from_logits=True`. Received: outputs from {outputs.min():g} to "
            f"{outputs.max():g}, row sums from {sums.min():g} to {sums.max():g}"
        )


SOFTMAX_MESSAGE = (
    "`from_logits=True` was given, but the model ends in a softmax: its outputs are "
    "probabilities. Pass `from_logits=False`, or (better: no precision is lost) remove the "
    "softmax from the model's end."
)
