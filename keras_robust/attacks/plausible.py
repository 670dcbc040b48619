"""Warnings of radii and steps that can hardly be meant: most are in another unit."""

import math
import warnings
from typing import Any

import keras
import numpy as np

from keras_robust import scheduled

# In a range of at least so many units, such as grey levels of 0 to 255, a size below this share of
# the range, a quarter of a grey level, is likely to be meant for images in [0, 1].
_WIDE, _SMALL = 100.0, 1e-3
_ROUNDING = 1 + 1e-6


def warn_of_units(attack: Any, num_values: int | None = None) -> None:
    """Warns of an attack's radius, step size or standard deviation, where it is implausible.

    Args:
        attack: `kr.attacks.Attack`.
        num_values: int. How many values an image has: it then warns of what could not be told
            without it. Defaults to `None`.
    """
    known = _messages(attack, None) if num_values else []
    for message in _messages(attack, num_values):
        if message not in known:
            warnings.warn(message, stacklevel=3)


def largest_distance(attack: Any, num_values: int | None) -> float:
    """The distance between opposite corners of the attack's bounds, in its norm.

    It is infinite where it depends on the number of values, and that is not known.
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
    for name, size, furthest in (
        ("epsilon", epsilon, largest_distance(attack, num_values)),
        ("stddev", stddev, width),
    ):
        if size > furthest * _ROUNDING:
            messages.append(
                f"`{name}={size:g}` is larger than any difference within `bounds={low, high}`, "
                f"{furthest:.3g}. It is in the units of the images: for a size in grey levels of "
                f"0 to 255, pass `{name}={size / 255 * width:.3g}`; for images in other units, "
                "their `bounds`."
            )
        elif _WIDE <= width < math.inf and 0 < size < _SMALL * width:
            messages.append(
                f"`{name}={size:.3g}` is less than a thousandth of the range of "
                f"`bounds={low, high}`. It is in the units of the images: for a size that was "
                f"meant for images in [0, 1], pass `{name}={size * width:.3g}`."
            )
    if 0 < 2 * epsilon * _ROUNDING < step_size:
        messages.append(
            f"`step_size={step_size:g}` is larger than the ball, 2 * epsilon = {2 * epsilon:g}: "
            "every step ends at its edge. The number of steps is `num_steps`; leave `step_size` "
            "out for a size that follows from both."
        )
    return messages


def _number(value: Any, num_values: int | None) -> float:
    """The number that it is now; 0 where it has none, or is a variable without images yet."""
    if isinstance(value, keras.Variable):
        return scheduled.number("", value) if num_values else 0.0
    if isinstance(value, np.ndarray):
        return float(value.max())
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number else 0.0
