"""Hyperparameters that may change during training: loss weights and attack radii."""

import math
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_robust import validation

Schedule = keras.optimizers.schedules.LearningRateSchedule


def check_scheduled(name: str, value: Any, **limits: Any) -> Any:
    """Checks a hyperparameter that may change during training, and returns it.

    It may be a number or an array, as `validation.check_number_or_array` accepts them, a scalar
    `keras.Variable`, or a `keras.optimizers.schedules.LearningRateSchedule`. The config of a
    variable or schedule, as `saved` returns it, is restored first.
    """
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
    # 0 is valid even where `limits` exclude it: a radius that grows in training may start there.
    validation.check_number(name, number(name, value), maximum=limits.get("maximum", float("inf")))
    return value


def number(name: str, value: Any) -> Any:
    """Returns the current value as a number or an array.

    Raises:
        ValueError: if `value` is a schedule, which has a value only during training.
    """
    if isinstance(value, Schedule):
        raise ValueError(
            f"A schedule as `{name}` has a value only during training. Expected a number, as in "
            f"`attack.replace({name}=0.1)`. Received: {name}={value!r}"
        )
    return float(ops.convert_to_numpy(value)) if isinstance(value, keras.Variable) else value


def value_at(
    value: Any, iterations: Any, maximum: float = float("inf"), dtype: Any = "float32"
) -> Any:
    """Returns the value at a training step.

    A number or an array is returned as it is. A variable or a schedule gives a scalar tensor, which
    is NaN if the value is outside 0 to `maximum`.

    Args:
        value: number, array, variable or schedule.
        iterations: int tensor, the number of steps that the optimizer has taken.
        maximum: float, the largest valid value.
        dtype: dtype of the tensor.
    """
    if not isinstance(value, keras.Variable | Schedule):
        return value
    current = value(iterations) if isinstance(value, Schedule) else value
    current = ops.cast(current, dtype)
    return ops.where((current >= 0) & (current <= maximum), current, float("nan"))


def saved(value: Any) -> Any:
    """Returns a hyperparameter in the form in which a config stores it.

    A variable is stored by its value, and infinity as `None`.
    """
    if isinstance(value, Schedule):
        return keras.saving.serialize_keras_object(value)
    if isinstance(value, keras.Variable):
        return {"variable": float(ops.convert_to_numpy(value))}
    if isinstance(value, np.ndarray):
        return value.tolist()
    return None if isinstance(value, float) and math.isinf(value) else value


def restored(config: dict[str, Any]) -> Any:
    """Returns the variable or schedule of a config that `saved` has returned."""
    if "variable" in config:
        return keras.Variable(config["variable"], trainable=False, dtype="float32")
    return keras.saving.deserialize_keras_object(config)
