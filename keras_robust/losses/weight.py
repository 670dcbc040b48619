"""Weights of losses that may change while a model is trained."""

from typing import Any

import keras
from keras import ops

from keras_robust import validation
from keras_robust.losses.step import current_step

Schedule = keras.optimizers.schedules.LearningRateSchedule


def check_weight(name: str, value: Any, maximum: float = float("inf")) -> Any:
    """A finite number from 0 to `maximum`; a `keras.Variable` that holds one; or a schedule."""
    if isinstance(value, dict):
        value = restored(value)
    if isinstance(value, Schedule):
        return value
    if isinstance(value, keras.Variable):
        if value.shape != ():
            raise ValueError(
                f"A variable passed as argument `{name}` must be a scalar. "
                f"Received: {name} with shape {tuple(value.shape)}"
            )
        validation.check_number(name, float(ops.convert_to_numpy(value)), maximum=maximum)
        return value
    return validation.check_number(name, value, maximum=maximum)


def current(weight: Any, maximum: float = float("inf")) -> Any:
    """The weight in the training step under way; NaN where it has left 0 to `maximum`."""
    if isinstance(weight, float):
        return weight
    step = current_step()
    if step is None:
        raise ValueError(
            "A weight that is a `keras.Variable` or a schedule is known to a "
            "`keras_robust.RobustModel` alone: wrap the model. Received: a loss in another model"
        )
    value = weight(step.iterations) if isinstance(weight, Schedule) else weight
    value = ops.cast(value, "float32")
    return ops.where((value >= 0) & (value <= maximum), value, float("nan"))


def saved(weight: Any) -> Any:
    """What a configuration has for it: of a variable, its value."""
    if isinstance(weight, Schedule):
        return keras.saving.serialize_keras_object(weight)
    if isinstance(weight, keras.Variable):
        return {"variable": float(ops.convert_to_numpy(weight))}
    return weight


def restored(config: dict[str, Any]) -> Any:
    """The opposite of `saved`."""
    if "variable" in config:
        return keras.Variable(config["variable"], trainable=False, dtype="float32")
    return keras.saving.deserialize_keras_object(config)


def variables(loss: Any) -> list[keras.Variable]:
    """The variables among a loss's weights, and those of the losses that it is made of."""
    found = [value for value in vars(loss).values() if isinstance(value, keras.Variable)]
    found += [value for value in getattr(loss, "weights", []) if isinstance(value, keras.Variable)]
    for part in [*getattr(loss, "losses", []), getattr(loss, "loss", None)]:
        found += variables(part) if isinstance(part, keras.losses.Loss) else []
    return list({id(variable): variable for variable in found}.values())
