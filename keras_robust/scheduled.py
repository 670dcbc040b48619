"""Numbers that may change while a model is trained: weights of losses, radii of attacks."""

import math
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_robust import validation

Schedule = keras.optimizers.schedules.LearningRateSchedule


def check_scheduled(name: str, value: Any, **limits: Any) -> Any:
    """A number or array as `validation` checks it; a `keras.Variable` of one; or a schedule."""
    if isinstance(value, dict):
        value = restored(value)
    if isinstance(value, Schedule):
        return value
    if not isinstance(value, keras.Variable):
        return validation.check_number_or_array(name, value, **limits)
    if value.shape != ():
        raise ValueError(
            f"A variable passed as argument `{name}` must be a scalar. "
            f"Received: {name} with shape {tuple(value.shape)}"
        )
    # A radius that grows may start from 0.
    validation.check_number(name, number(name, value), maximum=limits.get("maximum", float("inf")))
    return value


def number(name: str, value: Any) -> Any:
    """The number, or array, that it is now; a schedule has one in training alone."""
    if isinstance(value, Schedule):
        raise ValueError(
            f"A schedule as `{name}` has a value in training alone. Expected a number, as in "
            f"`attack.replace({name}=0.1)`. Received: {name}={value!r}"
        )
    return float(ops.convert_to_numpy(value)) if isinstance(value, keras.Variable) else value


def value_at(
    value: Any, iterations: Any, maximum: float = float("inf"), dtype: Any = "float32"
) -> Any:
    """A number as it is; else a tensor, NaN where it has left 0 to `maximum`.

    Args:
        value: number, variable or schedule.
        iterations: int tensor, how many steps the optimizer has taken.
        maximum: float.
        dtype: of the tensor.
    """
    if not isinstance(value, keras.Variable | Schedule):
        return value
    current = value(iterations) if isinstance(value, Schedule) else value
    current = ops.cast(current, dtype)
    return ops.where((current >= 0) & (current <= maximum), current, float("nan"))


def saved(value: Any) -> Any:
    """What a configuration has for it: of a variable, its value."""
    if isinstance(value, Schedule):
        return keras.saving.serialize_keras_object(value)
    if isinstance(value, keras.Variable):
        return {"variable": float(ops.convert_to_numpy(value))}
    if isinstance(value, np.ndarray):
        return value.tolist()
    return None if isinstance(value, float) and math.isinf(value) else value


def restored(config: dict[str, Any]) -> Any:
    """The opposite of `saved`."""
    if "variable" in config:
        return keras.Variable(config["variable"], trainable=False, dtype="float32")
    return keras.saving.deserialize_keras_object(config)
