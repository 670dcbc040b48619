"""The training step that a loss is part of.

Keras calls a loss with labels and predictions alone. What a model-aware loss needs beside them
(the model, the images, the result of its attack) is put here by `RobustModel` for as long as
Keras computes the loss. A context variable, because `MirroredStrategy` runs each replica's step
in a thread of its own.
"""

import contextvars
import dataclasses
from contextlib import AbstractContextManager
from typing import Any

from keras_robust.backend.scope import scope
from keras_robust.model.classifier import call_model


@dataclasses.dataclass
class Step:
    """One batch on its way through a model.

    Args:
        model: the classifier, unwrapped.
        x: the images that the model's predictions were computed from.
        prepared: what the loss's `prepare` returned beside them.
        training: bool. Whether this is a training step, rather than an evaluation.
        iterations: int tensor, how many steps the optimizer has taken; of a training step.
        losses: the penalties that the model's layers have added on `x`.
        loss: the loss that prepared the step; of a training step.
        kept: what the loss's `forward` has kept for its `training_loss`.
    """

    model: Any = None
    x: Any = None
    prepared: Any = None
    training: bool = False
    iterations: Any = None
    losses: Any = None
    loss: Any = None
    kept: Any = None

    def predict(self, x: Any) -> Any:
        """The model's outputs in training mode."""
        return call_model(self.model, x, training=True)


_step: contextvars.ContextVar[Step | None] = contextvars.ContextVar("step", default=None)


def current_step() -> Step | None:
    """The step that is being computed, if any."""
    return _step.get()


def step_scope(step: Step) -> AbstractContextManager[Step]:
    """Makes `step` the current one."""
    return scope(_step, step)
