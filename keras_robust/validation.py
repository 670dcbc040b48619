"""Checks of what users pass in: `ValueError`s in Keras's form, before any work."""

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


def check_count(name: str, value: Any, minimum: int = 1) -> int:
    """An integer of at least `minimum`."""
    if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < minimum:
        raise ValueError(
            f"Invalid value for argument `{name}`. Expected an integer of at least {minimum}. "
            f"Received: {name}={value!r}"
        )
    return int(value)


def check_number_or_array(name: str, value: Any, **limits: Any) -> Any:
    """A number as `check_number` has it; or an array of such, in float64."""
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
    """A pair of numbers or arrays, ascending; infinite where there is no bound."""
    low, high = _pair_of_bounds(bounds)
    if low is None or high is None or np.isnan(low).any() or not np.all(low < high):
        raise ValueError(
            "Invalid value for argument `bounds`. Expected a pair of numbers, or of arrays, the "
            "lower one first; `None` for what has no bound. "
            f"Received: bounds={bounds!r}"
        )
    return low, high


def _pair_of_bounds(bounds: Any) -> tuple[Any, Any]:
    """Floats or arrays; `None` for what is neither."""
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
    """An array of float64; `None` for what has no numbers."""
    try:
        array = np.asarray(keras.ops.convert_to_numpy(value))
        return array.astype("float64") if array.dtype.kind in "iuf" else None
    except (TypeError, ValueError):
        return None


def check_choice(name: str, value: Any, choices: Iterable[str]) -> str:
    """One of the strings in `choices`."""
    choices = tuple(choices)
    if value not in choices:
        raise ValueError(
            f"Invalid value for argument `{name}`. Expected one of {choices}. "
            f"Received: {name}={value!r}"
        )
    return value


def no_classifier(expected: str, received: str) -> ValueError:
    """The error for outputs or labels that are not those of one class for each example."""
    return ValueError(
        f"{expected} Each example must have one class: multi-label, regression and segmentation "
        f"models are not supported. Received: {received}"
    )


def as_list(values: Any) -> list[Any]:
    """A list; of one value alone, a list of one."""
    is_many = hasattr(values, "__iter__") and getattr(values, "shape", None) != ()
    return list(values) if is_many and not isinstance(values, str) else [values]


def check_several(name: str, values: Any, check: Callable[[str, Any], Any]) -> list[Any]:
    """At least one value, ascending, each as `check(name, value)` returns it; one may be alone."""
    checked = sorted({check(name, value) for value in as_list(values)})
    if not checked:
        raise ValueError(f"Argument `{name}` must not be empty. Received: {name}=[]")
    return checked


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


def check_data_format(data_format: Any) -> str:
    """One of Keras's two orders of an image's axes; the one that is set in Keras for `None`."""
    if data_format is None:
        return keras.config.image_data_format()
    return check_choice("data_format", data_format, _DATA_FORMATS)


def warn_of_other_data_format(shape: Any, data_format: str) -> None:
    """Warns of a batch's shape that looks like images of the other order.

    That is: the axis of the channels is long, and the one that would be theirs in the other order
    has 1 or 3 entries and is the shortest. An unknown length counts as a long one.
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
