"""Whether attacks become stronger by more steps, as those that follow a gradient must."""

import numpy as np

from keras_robust.attacks import FGSM
from keras_robust.evaluation.checks.case import NUM_STEPS, Case
from keras_robust.evaluation.checks.outcome import Outcome, compared

_COUNTS = (1, 5, NUM_STEPS)


def more_steps(case: Case) -> Outcome:
    """PGD with an increasing number of steps: no accuracy above the one before."""
    robust = [case.robust(case.pgd(num_steps)) for num_steps in _COUNTS]
    names = [f"PGD with {count} step{'s' * (count > 1)}" for count in _COUNTS]
    outcomes = [
        compared(names[i + 1], robust[i + 1], names[i], robust[i]) for i in range(len(_COUNTS) - 1)
    ]
    worst = min(outcomes, key=lambda outcome: outcome.figures["p_value"])
    accuracies = {
        f"accuracy_after_{count}_steps": float(np.mean(left))
        for count, left in zip(_COUNTS, robust, strict=True)
    }
    figures = {**accuracies, "p_value": worst.figures["p_value"]}
    if not worst.passed:
        return Outcome(False, worst.sentence, figures)
    numbers = ", ".join(f"{accuracy:.1%}" for accuracy in accuracies.values())
    counts = ", ".join(map(str, _COUNTS))
    sentence = f"PGD with {counts} steps leaves {numbers} of the examples standing."
    return Outcome(True, sentence, figures)


def single_step(case: Case) -> Outcome:
    """PGD against FGSM."""
    fgsm = FGSM(case.epsilon, norm=case.norm, loss=case.loss, **case.setting)
    return compared(
        f"PGD with {NUM_STEPS} steps",
        case.robust(case.pgd()),
        "FGSM's single step",
        case.robust(fgsm),
    )


def no_weaker(case: Case) -> Outcome:
    """The judged attack against plain PGD."""
    return compared(
        case.name,
        case.robust(case.attack),
        f"plain PGD with {NUM_STEPS} steps",
        case.robust(case.pgd()),
    )
