"""Checks whether attacks succeed in a ball so large that every model can be fooled."""

import numpy as np

from keras_robust.evaluation.checks.case import Case
from keras_robust.evaluation.checks.outcome import Outcome
from keras_robust.evaluation.checks.statistics import SIGNIFICANCE, binomial_tail

# Half of the bounds' range. At this radius, every image can be turned into the same grey image, on
# which no classifier does better than chance.
_GREY = 0.5


def _robust_at_grey(case: Case) -> np.ndarray:
    return case.robust(case.pgd(epsilon=case.radius(_GREY)))


_NOT_BOUNDED = Outcome(
    None, "Without finite bounds, or with a mask, not every image can be made grey."
)


def falls_to_chance(case: Case) -> Outcome:
    """Checks PGD in the ball in which every image can be made grey."""
    if not case.is_bounded:
        return _NOT_BOUNDED
    robust = _robust_at_grey(case)
    chance = case.chance or 1 / case.probabilities().shape[1]
    p_value = binomial_tail(int(robust.sum()), len(robust), chance)
    figures = {
        "epsilon": float(np.max(case.radius(_GREY))),
        "accuracy": float(robust.mean()),
        "chance": chance,
        "p_value": p_value,
    }
    facts = (
        f"At epsilon {figures['epsilon']:.3g}, every image can be made grey. There, the model "
        f"classifies {robust.mean():.1%} of the examples correctly under PGD. Guessing achieves "
        f"{chance:.1%}."
    )
    if p_value >= SIGNIFICANCE:
        return Outcome(True, facts, figures)
    sentence = f"{facts} The attack misses adversarial examples that certainly exist."
    return Outcome(False, sentence, figures)


def unbounded(case: Case) -> Outcome:
    """Checks PGD in the ball that contains all images.

    Only the examples that PGD does not fool in the smaller ball are attacked.
    """
    if not case.is_bounded:
        return _NOT_BOUNDED
    robust = _robust_at_grey(case)
    if robust.any():
        robust = case.robust(case.pgd(epsilon=case.radius(1.0)), among=robust)
    figures = {"epsilon": float(np.max(case.radius(1.0))), "accuracy": float(robust.mean())}
    if not robust.any():
        return Outcome(True, "Unbounded PGD fools the model on every example.", figures)
    sentence = (
        f"Under unbounded PGD, the model still classifies {robust.mean():.1%} of the examples "
        "correctly, although the ball contains images of other classes."
    )
    return Outcome(False, sentence, figures)
