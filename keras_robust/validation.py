"""Checks of user arguments. They raise a `ValueError` in Keras's form before any work is done."""

import math
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import keras
import numpy as np

_DATA_FORMATS = ("channels_last", "channels_first")


def check_number(
    name: str,
    value: Any,
    *,
    minimum: float = 0.0,
    exclusive: bool = False,
    maximum: float = math.inf,
) -> float:
    """Checks that a value is a finite number from `minimum` to `maximum`.

    Args:
        name: string, the argument's name in the error message.
        value: the value to check.
        minimum: float.
        exclusive: bool, whether the number must be greater than `minimum`.
        maximum: float.

    Returns:
        The number as a float.
    """
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


def check_count(name: str, value: Any, minimum: int = 1) -> int:
    """Checks that a value is an integer of at least `minimum`, and returns it."""
    if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < minimum:
        raise ValueError(
            f"Invalid value for argument `{name}`. Expected an integer of at least {minimum}. "
            f"Received: {name}={value!r}"
        )
    return int(value)


def check_number_or_array(name: str, value: Any, **limits: Any) -> Any:
    """Checks a number, or each entry of an array, by `check_number`.

    Returns:
        A float, or an array of float64.
    """
    if not np.ndim(value):
        return check_number(name, value, **limits)
    array = _as_array(value)
    if array is None or not array.size:
        raise ValueError(
            f"Invalid value for argument `{name}`. Expected a number, or an array of numbers. "
            f"Received: {name}={value!r}"
        )
    for extreme in (array.min(), array.max()):
        check_number(name, extreme, **limits)
    return array


def check_bounds(bounds: Any) -> tuple[Any, Any]:
    """Checks a pair of ascending bounds, which are numbers or arrays.

    Returns:
        The bounds. `None`, for one of them or for the pair, becomes infinity.
    """
    low, high = _pair_of_bounds(bounds)
    if low is None or high is None or np.isnan(low).any() or not np.all(low < high):
        raise ValueError(
            "Invalid value for argument `bounds`. Expected a pair of numbers or arrays, the lower "
            "bound first. Either may be `None`, for no bound. "
            f"Received: bounds={bounds!r}"
        )
    return low, high


def _pair_of_bounds(bounds: Any) -> tuple[Any, Any]:
    """Returns the bounds as floats or arrays; `(None, None)` if they are invalid."""
    if bounds is None:
        return -math.inf, math.inf
    if not hasattr(bounds, "__len__") or isinstance(bounds, str) or len(bounds) != 2:
        return None, None
    pair = [_as_array(v) if v is not None else v for v in bounds]
    low, high = (
        np.asarray(unbounded) if given is None else found
        for given, found, unbounded in zip(bounds, pair, (-math.inf, math.inf), strict=True)
    )
    if low is None or high is None:
        return None, None
    try:
        np.broadcast_shapes(low.shape, high.shape)
    except ValueError:
        return None, None
    return low if low.ndim else float(low), high if high.ndim else float(high)


def _as_array(value: Any) -> np.ndarray | None:
    """Converts a value to an array of float64; returns `None` if it is not numeric."""
    try:
        array = np.asarray(keras.ops.convert_to_numpy(value))
        return array.astype("float64") if array.dtype.kind in "iuf" else None
    except (TypeError, ValueError):
        return None


def check_choice(name: str, value: Any, choices: Iterable[str]) -> str:
    """Checks that a value is one of the strings in `choices`, and returns it."""
    choices = tuple(choices)
    if value not in choices:
        raise ValueError(
            f"Invalid value for argument `{name}`. Expected one of {choices}. "
            f"Received: {name}={value!r}"
        )
    return value


def no_classifier(expected: str, received: str) -> ValueError:
    """Returns the error for outputs or labels that do not give each example one class.

    Args:
        expected: string, a sentence on what was expected.
        received: string, what was received.
    """
    return ValueError(
        f"{expected} Each example must have one class: multi-label, regression and segmentation "
        f"models are not supported. Received: {received}"
    )


def as_list(values: Any) -> list[Any]:
    """Returns the values as a list. A single value becomes a list of one."""
    is_many = hasattr(values, "__iter__") and getattr(values, "shape", None) != ()
    return list(values) if is_many and not isinstance(values, str) else [values]


def check_several(name: str, values: Any, check: Callable[[str, Any], Any]) -> list[Any]:
    """Checks one or several values by `check(name, value)`, which returns each of them.

    Returns:
        The values as an ascending list without duplicates.

    Raises:
        ValueError: if there are no values.
    """
    checked = sorted({check(name, value) for value in as_list(values)})
    if not checked:
        raise ValueError(f"Argument `{name}` must not be empty. Received: {name}=[]")
    return checked


def check_names(name: str, names: Any) -> list[str] | None:
    """Checks a list of distinct layer names, and returns it. `None` stays `None`."""
    if names is None:
        return None
    found = list(names) if isinstance(names, list | tuple) else []
    if not found or not all(isinstance(v, str) for v in found) or len(set(found)) < len(found):
        raise ValueError(
            f"Argument `{name}` must be a list of distinct layer names, or None. "
            f"Received: {name}={names!r}"
        )
    return found


def check_data_format(data_format: Any) -> str:
    """Checks `data_format` and returns it. `None` becomes Keras's setting."""
    if data_format is None:
        return keras.config.image_data_format()
    return check_choice("data_format", data_format, _DATA_FORMATS)


def warn_of_other_data_format(shape: Any, data_format: str) -> None:
    """Warns if a batch's shape looks like images of the other data format.

    It does if the axis that would hold the channels in the other format has length 1 or 3 and is
    the shortest, and the axis that holds them in `data_format` has another length. Unknown lengths
    count as infinite.
    """
    if len(shape) != 4:
        return
    first, middle, last = (math.inf if size is None else size for size in shape[1:])
    channels, other = (last, first) if data_format == "channels_last" else (first, last)
    if other in (1, 3) and channels not in (1, 3) and other < min(channels, middle):
        other_format = _DATA_FORMATS[data_format == "channels_last"]
        warnings.warn(
            f'Images of shape {tuple(shape[1:])} look like "{other_format}", but `data_format` is '
            f'"{data_format}": pass `data_format="{other_format}"`, or call '
            f'`keras.config.set_image_data_format("{other_format}")` first.',
            stacklevel=2,
        )
