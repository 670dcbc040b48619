"""What an attack has found."""

import dataclasses
from typing import Any, NamedTuple

import numpy as np


class RoundResult(NamedTuple):
    """The result of a round, for a `generate` that returns more than images.

    Args:
        x_adv: tensor, the images.
        num_gradients: int, or int tensor: how many gradients were computed for each example.
            Defaults to `0`.
        num_evaluations: int, or int tensor: how many times the model was run on each without one.
            Defaults to `0`.
        state: tuple of the tensors of `initial_state`, for the next round. Defaults to `()`.
    """

    x_adv: Any
    num_gradients: Any = 0
    num_evaluations: Any = 0
    state: tuple[Any, ...] = ()


# Norms of the rows of an array.
NORMS = {
    "l1": lambda rows: np.abs(rows).sum(axis=1, dtype="float64"),
    "l2": lambda rows: np.sqrt(np.square(rows).sum(axis=1, dtype="float64")),
    "linf": lambda rows: np.abs(rows).max(axis=1).astype("float64"),
}


@dataclasses.dataclass(frozen=True)
class AttackResult:
    """What `attack.run(model, x, y)` returns, in NumPy arrays.

    Args:
        x_adv: array, shape and dtype of `x`: the adversarial image of each example, or its
            original image where the attack has failed.
        success: bool array, shape `(num_examples,)`: whether the model misclassifies `x_adv`; for
            a targeted attack, whether it classifies it as `y`. By more than rounding can undo: a
            tie of the two largest outputs is no success, whichever `argmax` names.
        norms: mapping of `"l0"`, `"l1"`, `"l2"` and `"linf"` to float arrays, shape
            `(num_examples,)`: the norms of `x_adv - x`. L0 counts values.
        num_gradients: int array, shape `(num_examples,)`: how many gradients in the input were
            computed for each example.
        num_evaluations: int array, shape `(num_examples,)`: how many times the model was run
            without a gradient.
        without_gradient: tuple of strings, the classes of attacks that have found no gradient, and
            so have failed, where that is no error. Defaults to `()`.
    """

    x_adv: np.ndarray
    success: np.ndarray
    norms: dict[str, np.ndarray]
    num_gradients: np.ndarray
    num_evaluations: np.ndarray
    without_gradient: tuple[str, ...] = ()

    @property
    def success_rate(self) -> float:
        """Share of examples on which the attack has succeeded."""
        return float(self.success.mean())


def perturbation_norms(x: np.ndarray, x_adv: np.ndarray) -> dict[str, np.ndarray]:
    """The norms of `x_adv - x` for each example."""
    dtype = np.result_type(x.dtype, "float32")
    size = np.abs(x_adv.astype(dtype, copy=False) - x.astype(dtype, copy=False))
    size = size.reshape(len(x), -1)
    l0 = np.count_nonzero(size, axis=1).astype("float64")
    return {"l0": l0, **{name: norm(size) for name, norm in NORMS.items()}}
