"""Whether the model has a gradient that attacks can follow."""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from keras_robust import backend
from keras_robust.attacks.pgd import LOSSES
from keras_robust.attacks.problem import Problem
from keras_robust.evaluation.checks.case import Case
from keras_robust.evaluation.checks.outcome import Outcome
from keras_robust.model.classifier import Classifier

# An ordinary network has a gradient for every image; a few images may lie on a flat spot.
_MAX_ZERO_SHARE = 0.05


def failed_without(check: Callable[[Case], Outcome]) -> Callable[[Case], Outcome]:
    """The check, failed where the model has no gradient at all: TensorFlow raises there."""

    @functools.wraps(check)
    def wrapped(case: Case) -> Outcome:
        try:
            return check(case)
        except backend.NoGradientError as error:
            return Outcome(False, f"No gradient could be computed. {error}")

    return wrapped


@failed_without
def finite(case: Case) -> Outcome:
    """NaN and infinite values in the gradient."""
    share = float(np.mean(~np.isfinite(_gradient(case)).all(axis=1)))
    figures = {"share_not_finite": share}
    if share == 0:
        return Outcome(True, "The gradient in the input is finite for every example.", figures)
    sentence = f"The gradient in the input is NaN or infinite for {share:.1%} of the examples."
    return Outcome(False, sentence, figures)


@failed_without
def not_zero(case: Case) -> Outcome:
    """Examples without a gradient, of what attacks here climb, and of the cross-entropy.

    The cross-entropy is that of the model's outputs as they are, which other libraries climb. Its
    gradient in the logits is `softmax(z) - onehot(y)`, and counts as 0 where this is, in float32.
    With an `objective` it is left out, because the model itself is not what is differentiated.
    """
    climbed = float(np.mean(~_gradient(case).any(axis=1)))
    figures = {"share_zero": climbed}
    facts = f"The gradient that attacks climb is exactly zero for {climbed:.1%} of the examples"
    if climbed > _MAX_ZERO_SHARE:
        return Outcome(False, f"{facts}: they stand still there.", figures)
    if case.attack.objective is not None:
        return Outcome(True, f"{facts}.", figures)
    p = case.probabilities()
    one_hot = np.eye(p.shape[1], dtype=p.dtype)[case.y[case.examples]]
    standard = float(np.mean((p == one_hot).all(axis=1)))
    figures["share_zero_cross_entropy"] = standard
    if standard <= _MAX_ZERO_SHARE:
        sentence = f"{facts}, that of the cross-entropy for {standard:.1%}."
        return Outcome(True, sentence, figures)
    sentence = (
        f"The gradient of the cross-entropy underflows to zero for {standard:.1%} of the "
        f"examples. Attacks here climb the log-odds (zero for {climbed:.1%}); libraries that "
        "climb the cross-entropy stand still, and report too high an accuracy."
    )
    return Outcome(False, sentence, figures)


def _gradient(case: Case) -> np.ndarray:
    """What PGD follows in its first step, shape `(num_examples, features)`."""
    attack = case.pgd()

    def gradient(classifier: Classifier, x: Any, y: Any, seed: Any) -> Any:
        return Problem(attack, classifier, y, seed).gradient(LOSSES[attack.loss], x)

    def compute() -> np.ndarray:
        key = ("gradient", attack.key)
        return case.batched(case.classifier.compiled(key, gradient, num_batched=2))

    return case.once("gradient", compute).reshape(len(case.examples), -1)
