"""Checks whether more steps make attacks stronger, as they must for a useful gradient."""

import numpy as np

from keras_robust.attacks import FGSM
from keras_robust.evaluation.checks.case import NUM_STEPS, Case
from keras_robust.evaluation.checks.outcome import Outcome, compared

_COUNTS = (1, 5, NUM_STEPS)


def more_steps(case: Case) -> Outcome:
    """Checks that the accuracy under PGD never rises with the number of steps."""
    robust = [case.robust(case.pgd(num_steps)) for num_steps in _COUNTS]
    names = [f"PGD with {count} step{'s' * (count > 1)}" for count in _COUNTS]
    outcomes = [
        compared(names[i + 1], robust[i + 1], names[i], robust[i]) for i in range(len(_COUNTS) - 1)
    ]
    worst = min(outcomes, key=lambda outcome: outcome.figures["p_value"])
    accuracies = {
        f"accuracy_after_{count}_steps": float(np.mean(each))
        for count, each in zip(_COUNTS, robust, strict=True)
    }
    figures = {**accuracies, "p_value": worst.figures["p_value"]}
    if not worst.passed:
        return Outcome(False, worst.sentence, figures)
    numbers = ", ".join(f"{accuracy:.1%}" for accuracy in accuracies.values())
    counts = ", ".join(map(str, _COUNTS))
    sentence = (
        f"The model classifies {numbers} of the examples correctly under PGD with {counts} steps."
    )
    return Outcome(True, sentence, figures)


def single_step(case: Case) -> Outcome:
    """Checks that PGD is no weaker than FGSM."""
    fgsm = FGSM(case.epsilon, norm=case.norm, loss=case.loss, **case.setting)
    return compared(
        f"PGD with {NUM_STEPS} steps",
        case.robust(case.pgd()),
        "FGSM (a single step)",
        case.robust(fgsm),
    )


def no_weaker(case: Case) -> Outcome:
    """Checks that the judged attack is no weaker than plain PGD."""
    return compared(
        case.name,
        case.robust(case.attack),
        f"plain PGD with {NUM_STEPS} steps",
        case.robust(case.pgd()),
    )
