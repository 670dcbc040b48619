"""Whether attacks succeed where they must: in a ball so large that nothing can withstand them."""

import numpy as np

from keras_robust.evaluation.checks.case import Case
from keras_robust.evaluation.checks.outcome import Outcome
from keras_robust.evaluation.checks.statistics import SIGNIFICANCE, binomial_tail

# Half of the bounds' range: every image can be turned into the same grey one, on which no
# classifier does better than chance.
_GREY = 0.5


def _robust_at_grey(case: Case) -> np.ndarray:
    return case.robust(case.pgd(epsilon=case.radius(_GREY)))


_UNLIMITED = Outcome(
    None, "Without finite bounds, or with a mask, not every image can be made grey."
)


def falls_to_chance(case: Case) -> Outcome:
    """PGD in the ball in which every image can be made grey."""
    if not case.is_bounded:
        return _UNLIMITED
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
        f"At epsilon {figures['epsilon']:.3g}, where every image can be made grey, PGD leaves "
        f"{robust.mean():.1%} of the examples standing; guessing gets {chance:.1%}"
    )
    if p_value >= SIGNIFICANCE:
        return Outcome(True, f"{facts}.", figures)
    return Outcome(False, f"{facts}: the attack does not find what is certainly there.", figures)


def unbounded(case: Case) -> Outcome:
    """PGD in a ball that holds all images, on what the smaller ball has left."""
    if not case.is_bounded:
        return _UNLIMITED
    left = _robust_at_grey(case)
    robust = case.robust(case.pgd(epsilon=case.radius(1.0)), among=left) if left.any() else left
    figures = {"epsilon": float(np.max(case.radius(1.0))), "accuracy": float(robust.mean())}
    if not robust.any():
        return Outcome(True, "PGD without a limit fools the model on every example.", figures)
    sentence = (
        f"PGD without a limit leaves {robust.mean():.1%} of the examples standing, though images "
        "of other classes are within its reach."
    )
    return Outcome(False, sentence, figures)
