"""Weights of losses and radii of their attacks, which may change during training."""

from typing import Any

import keras

from keras_robust.losses.step import current_step
from keras_robust.scheduled import check_scheduled, value_at
from keras_robust.scheduled import saved as saved
from keras_robust.types import Loss, Scheduled


def check_weight(name: str, value: Any, maximum: float = float("inf")) -> Any:
    """Checks a weight: a number from 0 to `maximum`, a `keras.Variable` of one, or a schedule."""
    return check_scheduled(name, value, maximum=maximum)


def current(weight: Scheduled, maximum: float = float("inf")) -> Any:
    """Returns the weight in the current training step, or NaN if it is outside 0 to `maximum`."""
    if isinstance(weight, float):
        return weight
    step = current_step()
    if step is None:
        raise ValueError(
            "A weight that is a `keras.Variable` or a schedule needs a "
            "`keras_robust.RobustModel`: wrap the model. Received: a loss in another model"
        )
    return value_at(weight, step.iterations, maximum)


def variables(loss: Loss) -> list[keras.Variable]:
    """Returns the variables among the weights and attack radii of a loss and its nested losses."""
    attack = getattr(loss, "attack", None)
    found = [value for value in vars(loss).values() if isinstance(value, keras.Variable)]
    found += [value for value in getattr(loss, "weights", []) if isinstance(value, keras.Variable)]
    found += [] if attack is None else attack.variables
    for part in [*getattr(loss, "losses", []), getattr(loss, "loss", None)]:
        found += variables(part) if isinstance(part, keras.losses.Loss) else []
    return list({id(variable): variable for variable in found}.values())
