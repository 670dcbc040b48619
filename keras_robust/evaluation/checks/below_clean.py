"""Checks whether the attack has any effect."""

import math

from keras_robust.evaluation.checks.case import Case
from keras_robust.evaluation.checks.outcome import Outcome

# From these radii on, an attack should have an effect: 8/255 in L-infinity, 0.5 in L2 and 12 in L1
# for CIFAR-10's 32 x 32 x 3 values, converted to units of the bounds' range. There, published
# robust networks lose at least a fifth of their accuracy. At smaller radii, a network may be
# perfectly robust.
_NOTICEABLE = {"linf": 8 / 255, "l2": 0.5 / math.sqrt(32 * 32 * 3), "l1": 12 / (32 * 32 * 3)}
# If the attack fooled one example in twenty on average, it would fool none of this many examples
# with a probability of 1%.
_MIN_EXAMPLES = 90


def below_clean(case: Case) -> Outcome:
    """Checks that the judged attack fools at least one correctly classified example."""
    robust = case.robust(case.attack)
    attacked, fooled = case.counts or (len(robust), int((~robust).sum()))
    figures = {"num_examples": float(attacked), "num_fooled": float(fooled)}
    if fooled:
        sentence = f"{case.name} fools the model on {fooled} of {attacked} examples."
        return Outcome(True, sentence, figures)
    facts = f"{case.name} fools the model on none of {attacked} examples"
    if case.epsilon < case.radius(_NOTICEABLE[case.norm]) * (1 - 1e-6):
        sentence = f"{facts}. Its epsilon of {case.epsilon:.3g} may be too small to have an effect."
        return Outcome(None, sentence, figures)
    if attacked < _MIN_EXAMPLES:
        return Outcome(None, f"{facts}, too few to draw a conclusion.", figures)
    sentence = f"{facts} at epsilon {case.epsilon:.3g}: the attack seems to have no effect."
    return Outcome(False, sentence, figures)
