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
