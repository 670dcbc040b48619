"""Warnings about implausible radii and step sizes, which are usually in the wrong unit."""

import math
import warnings
from typing import Any

import keras
import numpy as np

from keras_robust import scheduled

# If `bounds` span at least `_WIDE` units (grey levels of 0 to 255, for example), a size below the
# fraction `_SMALL` of the range, a quarter of a grey level, was probably meant for images from 0
# to 1.
_WIDE, _SMALL = 100.0, 1e-3
_ROUNDING = 1 + 1e-6


def warn_of_units(attack: Any, num_values: int | None = None) -> None:
    """Warns about an implausible radius, step size or standard deviation of an attack.

    Args:
        attack: `kr.attacks.Attack`.
        num_values: int. Number of values of an image. If given, only those warnings are issued that
            depend on it, because the others were issued when the attack was created. Defaults to
            `None`.
    """
    known = _messages(attack, None) if num_values else []
    for message in _messages(attack, num_values):
        if message not in known:
            warnings.warn(message, stacklevel=3)


def largest_distance(attack: Any, num_values: int | None) -> float:
    """Returns the distance between opposite corners of the attack's bounds, in its norm.

    The distance is infinite if it depends on the number of values and `num_values` is `None`.
    """
    width = float(np.max(attack.bounds[1] - attack.bounds[0]))
    order = {"l1": 1, "l2": 2}.get(getattr(attack, "norm", "linf"))
    if order is None:
        return width
    return math.inf if num_values is None else width * num_values ** (1 / order)


def _messages(attack: Any, num_values: int | None) -> list[str]:
    epsilon, stddev, step_size = (
        _number(getattr(attack, name, None), num_values)
        for name in ("epsilon", "stddev", "step_size")
    )
    low, high = attack.bounds
    width = float(np.max(high - low))
    messages = []
    for name, size, largest in (
        ("epsilon", epsilon, largest_distance(attack, num_values)),
        ("stddev", stddev, width),
    ):
        if size > largest * _ROUNDING:
            messages.append(
                f"`{name}={size:g}` is larger than any difference within `bounds={low, high}`, "
                f"which is at most {largest:.3g}. It is in the units of the images. For a size in "
                f"grey levels of 0 to 255, pass `{name}={size / 255 * width:.3g}`. For images in "
                "other units, pass their `bounds`."
            )
        elif _WIDE <= width < math.inf and 0 < size < _SMALL * width:
            messages.append(
                f"`{name}={size:.3g}` is less than a thousandth of the range of "
                f"`bounds={low, high}`. It is in the units of the images. For a size that was "
                f"meant for images in [0, 1], pass `{name}={size * width:.3g}`."
            )
    if 0 < 2 * epsilon * _ROUNDING < step_size:
        messages.append(
            f"`step_size={step_size:g}` is larger than the diameter of the ball, 2 * epsilon = "
            f"{2 * epsilon:g}, so every step ends at its edge. If you meant the number of steps, "
            "pass `num_steps`. The default of `step_size` follows from `epsilon` and `num_steps`."
        )
    return messages


def _number(value: Any, num_values: int | None) -> float:
    """Returns the current value of an argument as a number, and the maximum of an array.

    Returns 0 if there is no number, and for a variable if `num_values` is `None`.
    """
    if isinstance(value, keras.Variable):
        return scheduled.number("", value) if num_values else 0.0
    if isinstance(value, np.ndarray):
        return float(value.max())
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number else 0.0
