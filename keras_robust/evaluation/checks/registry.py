"""Runs all checks, registered by the names of the properties that should hold."""

import dataclasses
from collections.abc import Callable

import keras

from keras_robust.evaluation.checks import (
    above_chance,
    below_clean,
    black_box,
    finite_differences,
    gradients,
    large_epsilon,
    randomness,
    saturation,
    steps,
)
from keras_robust.evaluation.checks.case import Case
from keras_robust.evaluation.checks.outcome import Outcome
from keras_robust.report.check_result import CheckResult

# If rounding decides the class of a larger share of the examples, no check is conclusive.
_MAX_TIED_SHARE = 0.5

CHECKS: dict[str, Callable[[Case], Outcome]] = {
    "robust accuracy is below clean accuracy": below_clean.below_clean,
    "the attack is no weaker than plain PGD": steps.no_weaker,
    "more steps never raise the accuracy": steps.more_steps,
    "multi-step beats single-step": steps.single_step,
    "white-box beats black-box": black_box.square,
    "white-box beats transfer": black_box.transfer,
    "white-box beats random noise": black_box.noise,
    "accuracy falls to chance at a large epsilon": large_epsilon.falls_to_chance,
    "an unbounded attack always succeeds": large_epsilon.unbounded,
    "the gradient is finite": gradients.finite,
    "the gradient is not zero": gradients.not_zero,
    "the gradient agrees with finite differences": finite_differences.agree,
    "the logits are not saturated": saturation.logits,
    "the features are not saturated": saturation.hidden,
    "the forward pass is deterministic": randomness.deterministic,
    above_chance.NAME: above_chance.above_chance,
}


def run_checks(case: Case, verbose: int) -> list[CheckResult]:
    """Runs all checks. An error in one check does not stop the others."""
    bar = keras.utils.Progbar(len(CHECKS), verbose=verbose)
    results = []
    for name, check in CHECKS.items():
        outcome = _run(check, case)
        results.append(CheckResult(name, outcome.passed, outcome.sentence, outcome.figures))
        bar.add(1)
    return results


def _run(check: Callable[[Case], Outcome], case: Case) -> Outcome:
    if not len(case.examples) and check is not above_chance.above_chance:
        return Outcome(None, "The model classifies none of the examples correctly.")
    try:
        outcome = check(case)
        is_decided = outcome.passed is not None and len(case.examples) > 0
        if is_decided and case.share_of_ties() > _MAX_TIED_SHARE:
            sentence = (
                f"{outcome.sentence} However, rounding decides the class of "
                f"{case.share_of_ties():.1%} of the examples, so this result is not conclusive."
            )
            return dataclasses.replace(outcome, passed=None, sentence=sentence)
        return outcome
    except Exception as error:
        message = f"{type(error).__name__}: {error}".split(". ")[0].rstrip(".")
        return Outcome(None, f"The check could not be run. {message}.")
