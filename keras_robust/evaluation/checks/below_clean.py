"""Whether the attack does anything."""

import math

from keras_robust.evaluation.checks.case import Case
from keras_robust.evaluation.checks.outcome import Outcome

# From these radii on an attack should be felt, in units of the bounds' range: 8/255 in L-infinity,
# 0.5 in L2 and 12 in L1 for CIFAR-10's 32 x 32 x 3 values, at which published robust networks lose
# a fifth of their accuracy and more. Below, a network may withstand by merit.
_MATTERS = {"linf": 8 / 255, "l2": 0.5 / math.sqrt(32 * 32 * 3), "l1": 12 / (32 * 32 * 3)}
# Were one example in twenty to be fooled, then that of so many none is would happen once in a
# hundred times.
_MIN_EXAMPLES = 90


def below_clean(case: Case) -> Outcome:
    """The judged attack, on examples that are all classified correctly without it."""
    robust = case.robust(case.attack)
    attacked, fooled = case.counts or (len(robust), int((~robust).sum()))
    figures = {"num_examples": float(attacked), "num_fooled": float(fooled)}
    if fooled:
        sentence = f"{case.name} fools the model on {fooled} of {attacked} examples."
        return Outcome(True, sentence, figures)
    facts = f"{case.name} fools the model on none of {attacked} examples"
    if case.epsilon < case.radius(_MATTERS[case.norm]) * (1 - 1e-6):
        sentence = f"{facts}; its epsilon of {case.epsilon:.3g} may be too small to matter."
        return Outcome(None, sentence, figures)
    if attacked < _MIN_EXAMPLES:
        return Outcome(None, f"{facts}, which are too few to tell.", figures)
    sentence = f"{facts}, at an epsilon of {case.epsilon:.3g}: it seems to do nothing."
    return Outcome(False, sentence, figures)
