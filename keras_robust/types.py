"""Names for what passes through the library.

Keras is not typed, and its backends' tensors are classes of their own. These names therefore tell a
reader what an argument is; mypy checks only `Objective`.
"""

from collections.abc import Callable
from typing import Any, Protocol, TypeAlias

# A tensor of Keras's backend; where a function converts its input, an array too.
Tensor: TypeAlias = Any
# A batch of images or other inputs, shape `(batch_size, ...)`; in `kr.evaluate` also a data set.
Images: TypeAlias = Any
# Integer labels, shape `(batch_size,)` or `(batch_size, 1)`, or one-hot labels,
# shape `(batch_size, num_classes)`.
Labels: TypeAlias = Any
# Logits or probabilities, shape `(batch_size, num_classes)`, or `(batch_size, 1)` for two classes.
Scores: TypeAlias = Any
# A Keras model, a callable from images to scores, or a `kr.BlackBox`.
Model: TypeAlias = Any
# An int, or a tensor of two, as `backend.make_seed` returns it.
Seed: TypeAlias = Any
# A number, a `keras.Variable` or a schedule; as the radius of an attack an array, too.
Scheduled: TypeAlias = Any
# A Keras loss, its name or its configuration.
Loss: TypeAlias = Any
# The shape of a batch, whose first dimension may be unknown; for several inputs their structure.
Shape: TypeAlias = Any
# What a constructor takes, by name, as `get_config` returns it.
Config: TypeAlias = dict[str, Any]
# Maps class scores, shape `(batch_size, num_classes)`, and labels, shape `(batch_size,)`, to one
# value per example, which an untargeted attack maximises.
ScoreLoss: TypeAlias = Callable[[Scores, Labels], Tensor]


class Objective(Protocol):
    """Replaces the model where an attack differentiates it."""

    def __call__(self, model: Model, x: Images, y: Labels, /) -> Tensor:
        """Returns one value per example, or scores, shape `(batch_size, num_classes)`."""
