"""The training step that a loss is part of.

Keras calls a loss with labels and predictions only. A loss that runs the model again also needs
the model, the images and the result of its attack. `RobustModel` provides them here while Keras
computes the loss. They are kept in a context variable because `MirroredStrategy` runs each
replica's step in its own thread.
"""

import contextvars
import dataclasses
from contextlib import AbstractContextManager
from typing import Any

from keras_robust.backend.scope import scope
from keras_robust.model.classifier import call_model
from keras_robust.types import Images, Tensor


@dataclasses.dataclass
class Step:
    """One batch that passes through a model.

    Args:
        model: the classifier, unwrapped.
        x: the images on which the model's predictions were computed.
        prepared: the data that the loss's `prepare` returned with the images.
        training: bool. Whether this is a training step rather than an evaluation.
        iterations: int tensor. How many steps the optimizer has taken. Set in a training step.
        losses: the penalties that the model's layers added on `x`.
        loss: the loss that prepared the step. Set in a training step.
        kept: data that the loss's `forward` stored for its `training_loss`.
    """

    model: Any = None
    x: Any = None
    prepared: Any = None
    training: bool = False
    iterations: Any = None
    losses: Any = None
    loss: Any = None
    kept: Any = None

    def predict(self, x: Images) -> Tensor:
        """Returns the model's outputs in training mode."""
        return call_model(self.model, x, training=True)


_step: contextvars.ContextVar[Step | None] = contextvars.ContextVar("step", default=None)


def current_step() -> Step | None:
    """Returns the step that is being computed, or `None`."""
    return _step.get()


def step_scope(step: Step) -> AbstractContextManager[Step]:
    """Makes `step` the current step."""
    return scope(_step, step)
