"""Checks whether the model has a gradient that attacks can follow."""

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
from keras_robust.types import Images, Labels, Seed

# An ordinary network has a nonzero gradient for nearly every image: a few may lie on a flat spot.
_MAX_ZERO_SHARE = 0.05


def fails_without_gradient(check: Callable[[Case], Outcome]) -> Callable[[Case], Outcome]:
    """Makes a check fail if the model has no gradient at all, which is an error on TensorFlow."""

    @functools.wraps(check)
    def wrapped(case: Case) -> Outcome:
        try:
            return check(case)
        except backend.NoGradientError as error:
            return Outcome(False, f"No gradient could be computed. {error}")

    return wrapped


@fails_without_gradient
def finite(case: Case) -> Outcome:
    """Checks that the gradient has no NaN or infinite values."""
    share = float(np.mean(~np.isfinite(_gradient(case)).all(axis=1)))
    figures = {"share_not_finite": share}
    if share == 0:
        return Outcome(True, "The input gradient is finite for every example.", figures)
    sentence = f"The input gradient is NaN or infinite for {share:.1%} of the examples."
    return Outcome(False, sentence, figures)


@fails_without_gradient
def not_zero(case: Case) -> Outcome:
    """Checks that the gradient is not zero, for the attacks' own loss and for the cross-entropy.

    Other libraries maximize the cross-entropy of the model's outputs. Its gradient in the logits is
    `softmax(z) - onehot(y)`, and counts as 0 if this difference is 0 in float32. With an
    `objective`, the cross-entropy is skipped, because attacks do not differentiate the model
    itself.
    """
    zero = float(np.mean(~_gradient(case).any(axis=1)))
    figures = {"share_zero": zero}
    facts = f"The gradient that attacks follow is exactly zero for {zero:.1%} of the examples"
    if zero > _MAX_ZERO_SHARE:
        return Outcome(False, f"{facts}, so attacks make no progress on them.", figures)
    if case.attack.objective is not None:
        return Outcome(True, f"{facts}.", figures)
    p = case.probabilities()
    one_hot = np.eye(p.shape[1], dtype=p.dtype)[case.y[case.examples]]
    standard = float(np.mean((p == one_hot).all(axis=1)))
    figures["share_zero_cross_entropy"] = standard
    if standard <= _MAX_ZERO_SHARE:
        sentence = f"{facts}, and the gradient of the cross-entropy for {standard:.1%}."
        return Outcome(True, sentence, figures)
    sentence = (
        f"The gradient of the cross-entropy underflows to zero for {standard:.1%} of the "
        f"examples. The attacks here maximize the log-odds, whose gradient is zero for {zero:.1%}. "
        "In libraries that maximize the cross-entropy, attacks make no progress, and the reported "
        "accuracy is too high."
    )
    return Outcome(False, sentence, figures)


def _gradient(case: Case) -> np.ndarray:
    """Returns the gradient of PGD's first step, shape `(num_examples, features)`."""
    attack = case.pgd()

    def gradient(classifier: Classifier, x: Images, y: Labels, seed: Seed) -> Any:
        return Problem(attack, classifier, y, seed).gradient(LOSSES[attack.loss], x)

    def compute() -> np.ndarray:
        key = ("gradient", attack.key)
        return case.batched(case.classifier.compiled(key, gradient, num_batched=2))

    return case.once("gradient", compute).reshape(len(case.examples), -1)
