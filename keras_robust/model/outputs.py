"""Checks of a model's outputs."""

from typing import Any

import keras
import numpy as np

from keras_robust.ops.logits import EXPECTED_OUTPUTS
from keras_robust.types import Scores
from keras_robust.validation import no_classifier

# Tolerance for a sum of probabilities, large enough for half precision.
ROUNDED = 1e-2


def single_output(outputs: Scores) -> Any:
    """Returns the one tensor in a model's outputs, which may be a list or a dict."""
    if hasattr(outputs, "shape"):
        return outputs
    tensors = keras.tree.flatten(outputs)
    if len(tensors) != 1:
        names = list(outputs) if isinstance(outputs, dict) else None
        raise ValueError(several("outputs", names or [str(n) for n in range(len(tensors))]))
    return tensors[0]


def several(what: str, names: list[str]) -> str:
    """Returns the error message for a model with several inputs or outputs."""
    return (
        "The model must have one input and one output, the class scores. Select the output, as in "
        '`keras.Model(m.input, m.output["logits"])`. Wrap a model with several inputs in one that '
        "keeps all but one of them fixed. "
        f"Received: a model with {len(names)} {what}, {names}"
    )


def check_outputs(outputs: np.ndarray, num_examples: int) -> None:
    """Raises a `ValueError` unless each example has a row of finite numbers, or one number."""
    if outputs.ndim not in (1, 2) or len(outputs) != num_examples or outputs.size == 0:
        raise no_classifier(
            EXPECTED_OUTPUTS, f"outputs of shape {outputs.shape} for {num_examples} examples"
        )
    if not np.isfinite(outputs).all():
        raise ValueError(
            "The model must return finite outputs. Received: "
            f"{int(np.sum(~np.isfinite(outputs)))} NaN or infinite values for {num_examples} "
            "examples"
        )


def are_probabilities(outputs: np.ndarray) -> bool:
    """Returns whether outputs look like those of a softmax."""
    sums = outputs.astype("float64").sum(axis=1)
    return bool((outputs >= 0).all() and (abs(sums - 1) < ROUNDED).all())
