"""Checks whether the model is better than guessing on clean images."""

import numpy as np

from keras_robust.evaluation.checks.case import Case
from keras_robust.evaluation.checks.outcome import Outcome
from keras_robust.evaluation.checks.statistics import SIGNIFICANCE, binomial_tail

NAME = "clean accuracy is above chance"


def above_chance(case: Case) -> Outcome:
    """Compares the model's predictions for clean images with guessing."""
    if case.predictions is None:
        return Outcome(None, "The model's predictions for clean images are not known.")
    return compared_with_chance(*case.predictions, case.chance)


def compared_with_chance(
    labels: np.ndarray, classes: np.ndarray, chance: float | None = None
) -> Outcome:
    """Checks whether predictions agree with labels more often than guesses would.

    The guesses are the model's own predictions in random order. They agree with the labels of a
    share `sum_c p_c q_c` of the images, where `p_c` is the share of class c among the labels and
    `q_c` its share among the predictions. For balanced classes, this is one divided by the number
    of classes. For a model that always predicts the same class, it is the share of this class.

    The check passes if guesses would agree at least as often in fewer than 1% of all samples of
    this size. It fails if they would not, and if a model halfway between guessing and perfect
    accuracy would agree as rarely in fewer than 1% of all samples. Otherwise, the examples are too
    few to decide.

    Args:
        labels: int array, shape `(num_examples,)`.
        classes: int array, shape `(num_examples,)`: the predicted classes.
        chance: float, the accuracy of guessing. Defaults to `None`: the accuracy of the predictions
            in random order.
    """
    count, correct = len(labels), int((classes == labels).sum())
    guessing = "Guessing"
    if chance is None:
        num_classes = 1 + max(labels.max(), classes.max())
        label_counts, class_counts = (
            np.bincount(values, minlength=num_classes) for values in (labels, classes)
        )
        if label_counts.max() == count:
            sentence = (
                f"All examples have the label {labels[0]}, so accuracy cannot be compared with "
                "guessing: use examples of several classes."
            )
            return Outcome(None, sentence)
        chance = float(label_counts / count @ class_counts / count)
        guessing = "Guessing each class as often as the model predicts it"
    p_value = binomial_tail(correct, count, chance)
    figures = {
        "accuracy": correct / count,
        "chance": chance,
        "num_examples": float(count),
        "p_value": p_value,
    }
    facts = (
        f"The model classifies {correct / count:.1%} of {count} clean examples correctly. "
        f"{guessing} achieves {chance:.1%}."
    )
    if p_value < SIGNIFICANCE:
        return Outcome(True, facts, figures)
    halfway = (1 + chance) / 2
    if binomial_tail(count - correct, count, 1 - halfway) >= SIGNIFICANCE:
        return Outcome(None, f"{facts} The examples are too few to draw a conclusion.", figures)
    sentence = (
        f"{facts} The model knows nothing about these images. Do they have the value range and the "
        "format of its training images? Are the labels numbered as in training? Are its trained "
        "weights loaded?"
    )
    return Outcome(False, sentence, figures)
