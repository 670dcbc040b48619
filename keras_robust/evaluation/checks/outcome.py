"""The result of a check function, and the comparison of two attacks that several checks make."""

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
    """Compares two attacks example by example. Passes if the stronger attack is no weaker.

    Args:
        stronger: string, the name of the attack that should be the stronger one.
        robust: bool array, shape `(num_examples,)`: the examples that it does not fool.
        weaker: string, the name of the other attack.
        others: bool array, shape `(num_examples,)`: the examples that the other attack does not
            fool.
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
    facts = (
        f"The model classifies {robust.mean():.1%} of the examples correctly under {stronger}, "
        f"and {others.mean():.1%} under {weaker}."
    )
    if p_value >= SIGNIFICANCE:
        return Outcome(True, facts, figures)
    sentence = f"{facts} Examples fooled only by {weaker}: {missed}; only by {stronger}: {found}."
    return Outcome(False, sentence, figures)
