"""Whether the model has a gradient that attacks can follow."""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from keras import ops

from keras_robust import backend, inference
from keras_robust.attacks.pgd import LOSSES
from keras_robust.attacks.problem import Problem
from keras_robust.evaluation.checks.case import Case
from keras_robust.evaluation.checks.outcome import Outcome
from keras_robust.ops import log_probabilities, of_class

# An ordinary network has a gradient for every image; a few images may lie on a flat spot.
_MAX_ZERO_SHARE = 0.05


def failed_without(check: Callable[[Case], Outcome]) -> Callable[[Case], Outcome]:
    """The check, failed where the model has no gradient at all: TensorFlow raises there."""

    @functools.wraps(check)
    def wrapped(case: Case) -> Outcome:
        try:
            return check(case)
        except ValueError as error:
            return Outcome(False, f"No gradient could be computed. {error}")

    return wrapped


@failed_without
def finite(case: Case) -> Outcome:
    """NaN and infinite values in the gradients."""
    gradients = case.once("gradients", lambda: _gradients(case))
    bad = np.any([~np.isfinite(values).all(axis=1) for values in gradients.values()], axis=0)
    figures = {"share_not_finite": float(bad.mean())}
    if not bad.any():
        return Outcome(True, "The gradient in the input is finite for every example.", figures)
    sentence = f"The gradient in the input is NaN or infinite for {bad.mean():.1%} of the examples."
    return Outcome(False, sentence, figures)


@failed_without
def not_zero(case: Case) -> Outcome:
    """Examples without a gradient, of what attacks here climb, and of the cross-entropy.

    The cross-entropy is that of the model's outputs as they are, which other libraries climb.
    With an `objective` it is left out, because the model itself is not what is differentiated.
    """
    gradients = case.once("gradients", lambda: _gradients(case))
    shares = {name: float(np.mean(~values.any(axis=1))) for name, values in gradients.items()}
    climbed, standard = shares["climbed"], shares.get("cross_entropy", 0.0)
    figures = {f"share_zero_{name}": share for name, share in shares.items()}
    facts = (
        f"The gradient that attacks here climb is exactly zero for {climbed:.1%} of the examples"
    )
    if climbed > _MAX_ZERO_SHARE:
        return Outcome(False, f"{facts}: they stand still there.", figures)
    if standard > _MAX_ZERO_SHARE:
        sentence = (
            f"The gradient of the cross-entropy is exactly zero for {standard:.1%} of the "
            f"examples. Attacks here climb the log-odds (zero for {climbed:.1%}); libraries that "
            "climb the cross-entropy stand still, and report too high an accuracy."
        )
        return Outcome(False, sentence, figures)
    if len(shares) > 1:
        facts += f", that of the cross-entropy for {standard:.1%}"
    return Outcome(True, f"{facts}.", figures)


def _gradients(case: Case) -> dict[str, np.ndarray]:
    """What attacks here climb, and the cross-entropy: shape `(num_examples, features)` each."""
    attack = case.pgd()
    kinds = {"climbed": _climbed, "cross_entropy": _of_cross_entropy}
    if case.attack.objective is not None:
        del kinds["cross_entropy"]

    def gradients(model: Any, x: Any, y: Any, seed: Any) -> Any:
        return ops.stack([kind(attack, model, x, y, seed) for kind in kinds.values()], axis=1)

    key = ("gradients", repr(attack))
    values = case.batched(backend.compiled(case.model, key, gradients, num_batched=2))
    values = values.reshape(len(values), len(kinds), -1)
    return {name: values[:, number] for number, name in enumerate(kinds)}


def _climbed(attack: Any, model: Any, x: Any, y: Any, seed: Any) -> Any:
    return Problem(attack, model, y, seed).gradient(LOSSES[attack.loss], x)


def _of_cross_entropy(attack: Any, model: Any, x: Any, y: Any, seed: Any) -> Any:
    def loss(x: Any) -> Any:
        outputs = inference.call(model, x)
        return -ops.sum(of_class(log_probabilities(outputs, attack.from_logits), y))

    with backend.seeded(inference.random_state(model), seed):
        return backend.input_gradient(loss, x)
