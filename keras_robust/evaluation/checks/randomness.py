"""Checks whether the model is deterministic."""

import numpy as np

from keras_robust.evaluation.checks.case import Case
from keras_robust.evaluation.checks.outcome import Outcome

# The order of parallel sums varies on a GPU. The outputs of a network then differ by a few units in
# the last place: about 1e-6 of their range in float32, and 1e-3 in float16.
_TOLERANCE = 0.01


def deterministic(case: Case) -> Outcome:
    """Compares passes through the model with the same seed and with another seed."""
    first, *others = (case.predicted(seed).astype("float64") for seed in (0, 0, 1))
    spread = np.ptp(first, axis=1, keepdims=True)
    spread = np.where(spread > 0, spread, 1.0)
    changes = np.max([abs(other - first) for other in others], axis=0)
    change = float((changes / spread).max())
    flipped = np.mean(
        np.any([other.argmax(axis=1) != first.argmax(axis=1) for other in others], axis=0)
    )
    num_samples = case.attack.num_samples
    figures = {
        "largest_relative_change": change,
        "share_of_changed_classes": float(flipped),
        "num_samples": float(num_samples),
    }
    if (changes <= np.maximum(_TOLERANCE * spread, case.rounding()[:, None])).all():
        return Outcome(True, "Two passes over the same images give the same outputs.", figures)
    facts = (
        f"The model is random in inference mode: from one pass to the next, its outputs change by "
        f"up to {change:.1%} of their range, and {flipped:.1%} of the examples change their class."
    )
    if num_samples > 1:
        sentence = f"{facts} The attack averages over {num_samples} draws."
        return Outcome(True, sentence, figures)
    sentence = f"{facts} Attack the model with `num_samples` of 10 or more instead of 1."
    return Outcome(False, sentence, figures)
