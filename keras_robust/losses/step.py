"""The training step that a loss is part of.

Keras calls a loss with labels and predictions alone. What a model-aware loss needs beside them
(the model, the images, the result of its attack) is put here by `RobustModel` for as long as
Keras computes the loss. A context variable, because `MirroredStrategy` runs each replica's step
in a thread of its own.
"""

import contextlib
import contextvars
import dataclasses
from collections.abc import Iterator
from typing import Any


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
        kept: what the loss's `forward` has kept for its `training_loss`.
    """

    model: Any = None
    x: Any = None
    prepared: Any = None
    training: bool = False
    iterations: Any = None
    losses: Any = None
    kept: Any = None


_step: contextvars.ContextVar[Step | None] = contextvars.ContextVar("step", default=None)


def current_step() -> Step | None:
    """The step that is being computed, if any."""
    return _step.get()


@contextlib.contextmanager
def step_scope(step: Step) -> Iterator[None]:
    """Makes `step` the current one."""
    token = _step.set(step)
    try:
        yield
    finally:
        _step.reset(token)
