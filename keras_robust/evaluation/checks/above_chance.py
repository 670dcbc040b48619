"""Whether the model knows anything about these images, before any attack."""

import numpy as np

from keras_robust.evaluation.checks.case import Case
from keras_robust.evaluation.checks.outcome import Outcome
from keras_robust.evaluation.checks.statistics import SIGNIFICANCE, binomial_tail

NAME = "clean accuracy is above chance"


def above_chance(case: Case) -> Outcome:
    """The model's answers on all images that were looked at, without an attack."""
    if case.answers is None:
        return Outcome(None, "The model's answers on clean images are not known.")
    return compared_with_chance(*case.answers, case.chance)


def compared_with_chance(
    labels: np.ndarray, classes: np.ndarray, chance: float | None = None
) -> Outcome:
    """Whether answers agree with labels more often than guesses would.

    The guesses are the model's own answers in random order, which agree with the labels of a share
    `sum_c p_c q_c` of the images, where `p_c` is the share of class c among the labels and `q_c`
    that among the answers. For balanced classes it is one divided by their number; for a model that
    always gives the same answer it is the share of that class.

    The check passes where guesses would agree as often in fewer than 1% of all samples of this
    size. It fails where they would not, and where a model halfway between guessing and knowing
    everything would agree so seldom in fewer than 1%. Between the two, the examples are too few.

    Args:
        labels: int array, shape `(num_examples,)`.
        classes: int array of the same shape, what the model answers.
        chance: float, the accuracy of guessing. Defaults to `None`: that of the answers in random
            order.
    """
    count, correct = len(labels), int((classes == labels).sum())
    guessing = "Guessing"
    if chance is None:
        num_classes = 1 + max(labels.max(), classes.max())
        of_labels, of_answers = (np.bincount(v, minlength=num_classes) for v in (labels, classes))
        if of_labels.max() == count:
            sentence = (
                f"All examples have the label {labels[0]}, so that knowing cannot be told from "
                "guessing: look at examples of several classes."
            )
            return Outcome(None, sentence)
        chance = float(of_labels / count @ of_answers / count)
        guessing = "Guessing each class as often as it does"
    p_value = binomial_tail(correct, count, chance)
    figures = {
        "accuracy": correct / count,
        "chance": chance,
        "num_examples": float(count),
        "p_value": p_value,
    }
    facts = (
        f"The model classifies {correct / count:.1%} of {count} clean examples correctly. "
        f"{guessing} gets {chance:.1%}"
    )
    if p_value < SIGNIFICANCE:
        return Outcome(True, f"{facts}.", figures)
    halfway = (1 + chance) / 2
    if binomial_tail(count - correct, count, 1 - halfway) >= SIGNIFICANCE:
        return Outcome(None, f"{facts}; the examples are too few to tell.", figures)
    sentence = (
        f"{facts}: the model knows nothing about these images. Are they in the range and the form "
        "that it was trained on, are the labels numbered as they were then, and are its trained "
        "weights loaded?"
    )
    return Outcome(False, sentence, figures)
