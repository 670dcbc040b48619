"""Results of attacks."""

import dataclasses
from typing import Any, NamedTuple

import numpy as np


class RoundResult(NamedTuple):
    """Result of one round of an attack, for a `generate` that returns more than images.

    Args:
        x_adv: tensor. The images.
        num_gradients: int, or int tensor. Number of gradients computed for each example. Defaults
            to `0`.
        num_evaluations: int, or int tensor. Number of model evaluations without a gradient for each
            example. Defaults to `0`.
        state: tuple of tensors, like that of `initial_state`, for the next round. Defaults to `()`.
    """

    x_adv: Any
    num_gradients: Any = 0
    num_evaluations: Any = 0
    state: tuple[Any, ...] = ()


# Norms of the rows of a matrix.
NORMS = {
    "l1": lambda rows: np.abs(rows).sum(axis=1, dtype="float64"),
    "l2": lambda rows: np.sqrt(np.square(rows).sum(axis=1, dtype="float64")),
    "linf": lambda rows: np.abs(rows).max(axis=1).astype("float64"),
}


@dataclasses.dataclass(frozen=True)
class AttackResult:
    """Result of `attack.run(model, x, y)`, as NumPy arrays.

    Args:
        x_adv: array, shape and dtype of `x`. The adversarial image of each example, or its original
            image if the attack failed.
        success: bool array, shape `(num_examples,)`. Whether the model misclassifies `x_adv`, or,
            for a targeted attack, classifies it as `y`. The margin must be larger than rounding can
            undo. A tie of the two largest outputs is not a success, whichever class `argmax`
            returns.
        norms: dict with the keys `"l0"`, `"l1"`, `"l2"` and `"linf"` and float arrays, shape
            `(num_examples,)`. Norms of `x_adv - x`. L0 counts the changed values.
        num_gradients: int array, shape `(num_examples,)`. Number of input gradients computed for
            each example.
        num_evaluations: int array, shape `(num_examples,)`. Number of model evaluations without a
            gradient for each example.
        without_gradient: tuple of strings. Class names of the attacks that failed because they
            found no gradient, if that is not an error. Defaults to `()`.
    """

    x_adv: np.ndarray
    success: np.ndarray
    norms: dict[str, np.ndarray]
    num_gradients: np.ndarray
    num_evaluations: np.ndarray
    without_gradient: tuple[str, ...] = ()

    @property
    def success_rate(self) -> float:
        """Fraction of examples on which the attack succeeded."""
        return float(self.success.mean())


def perturbation_norms(x: np.ndarray, x_adv: np.ndarray) -> dict[str, np.ndarray]:
    """Returns the norms of `x_adv - x` for each example."""
    dtype = np.result_type(x.dtype, "float32")
    size = np.abs(x_adv.astype(dtype, copy=False) - x.astype(dtype, copy=False))
    size = size.reshape(len(x), -1)
    l0 = np.count_nonzero(size, axis=1).astype("float64")
    return {"l0": l0, **{name: norm(size) for name, norm in NORMS.items()}}
