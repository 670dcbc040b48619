"""What a check function returns, and the comparison that several of them make."""

import dataclasses

import numpy as np

from keras_robust.evaluation.checks.statistics import SIGNIFICANCE, sign_test


@dataclasses.dataclass(frozen=True)
class Outcome:
    """A `CheckResult` without its name."""

    passed: bool | None
    sentence: str
    figures: dict[str, float] = dataclasses.field(default_factory=dict)


def compared(stronger: str, robust: np.ndarray, weaker: str, others: np.ndarray) -> Outcome:
    """Whether the attack that should be the stronger is no weaker, example by example.

    Args:
        stronger: its name.
        robust: bool array, shape `(num_examples,)`: the examples that withstand it.
        weaker: the other's name.
        others: the examples that withstand the other.
    """
    missed = int((robust & ~others).sum())
    found = int((~robust & others).sum())
    p_value = sign_test(missed, found)
    figures = {
        "accuracy": float(robust.mean()),
        "compared_accuracy": float(others.mean()),
        "fooled_by_it_alone": float(found),
        "fooled_by_the_other_alone": float(missed),
        "num_examples": float(len(robust)),
        "p_value": p_value,
    }
    first = stronger[0].upper() + stronger[1:]
    facts = (
        f"{first} leaves {robust.mean():.1%} of the examples standing, {weaker} {others.mean():.1%}"
    )
    if p_value >= SIGNIFICANCE:
        return Outcome(True, f"{facts}.", figures)
    sentence = f"{facts}: {missed} are fooled by {weaker} alone, and {found} by {stronger} alone."
    return Outcome(False, sentence, figures)
