"""Weights of losses and radii of their attacks, which may change while a model is trained."""

from typing import Any

import keras

from keras_robust.losses.step import current_step
from keras_robust.scheduled import check_scheduled, value_at
from keras_robust.scheduled import saved as saved


def check_weight(name: str, value: Any, maximum: float = float("inf")) -> Any:
    """A finite number from 0 to `maximum`; a `keras.Variable` that holds one; or a schedule."""
    return check_scheduled(name, value, maximum=maximum)


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
    return value_at(weight, step.iterations, maximum)


def variables(loss: Any) -> list[keras.Variable]:
    """The variables among a loss's weights and radii, and those of the losses in it."""
    attack = getattr(loss, "attack", None)
    found = [value for value in vars(loss).values() if isinstance(value, keras.Variable)]
    found += [value for value in getattr(loss, "weights", []) if isinstance(value, keras.Variable)]
    found += [] if attack is None else attack.variables
    for part in [*getattr(loss, "losses", []), getattr(loss, "loss", None)]:
        found += variables(part) if isinstance(part, keras.losses.Loss) else []
    return list({id(variable): variable for variable in found}.values())
