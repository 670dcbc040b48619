"""Accuracy at radii relative to the radius that fools a reference model."""

import math
from collections.abc import Sequence
from typing import Any

import keras

from keras_robust import validation
from keras_robust.attacks import Attack
from keras_robust.attacks.plausible import largest_distance
from keras_robust.metrics.accuracy import attack_remaining
from keras_robust.metrics.curves import robustness_curve
from keras_robust.metrics.radii import check_attack, with_radius
from keras_robust.model.arrays import as_arrays
from keras_robust.model.checks import sparse
from keras_robust.model.classifier import Classifier
from keras_robust.types import Images, Labels, Model

# The first radius of the search and the resolution of the bisection, relative to the largest
# radius.
_FIRST, _SMALLEST = 2.0**-6, 1e-6


def reference_epsilon(
    model: Model,
    x: Images,
    y: Labels = None,
    *,
    attack: Attack,
    error_rate: float = 0.5,
    max_epsilon: float | None = None,
    tolerance: float = 0.001,
    batch_size: int = 128,
    seed: int = 0,
    steps: int | None = None,
    verbose: int = 1,
) -> float:
    """Finds the smallest radius at which an attack fools a model on half of the images.

        epsilon_ref = min {epsilon : share of x in D that are misclassified within epsilon >= 0.5}

    The radius is found by doubling and then by bisection, and the attack is run again at each
    radius. An image that the attack fools at one radius counts as fooled at every larger radius,
    because the larger ball contains the same perturbed image. Without this rule, the error of a
    single-step attack could fall again as the radius grows. Images that are misclassified without
    an attack count as fooled.

    Args:
        model: Keras model, or a callable `x -> logits`.
        x: images, shape `(num_examples, ...)`, or a data set of (image, label) pairs, as for
            `kr.evaluate`.
        y: integer or one-hot labels. Omit it if `x` is a data set. Defaults to `None`.
        attack: `kr.attacks.Attack` with an `epsilon`, untargeted. Yan et al. (2018) use FGSM.
        error_rate: float, greater than 0, at most 1. The share of images to fool. Defaults to
            `0.5`.
        max_epsilon: float. The largest radius to try. Defaults to `None`: the width of the attack's
            bounds, times the number of values for the L1 norm, or its square root for the L2 norm.
        tolerance: float. The result is at most `1 + tolerance` times the exact radius. Defaults to
            `0.001`.
        batch_size: int. Number of images per batch. Defaults to `128`.
        seed: int. Random seed of the attack. Defaults to `0`.
        steps: int. Number of batches to read from a data set. Defaults to `None`: all of them.
        verbose: int. 1 shows a progress bar, 0 shows nothing. Defaults to `1`.

    Returns:
        Float, a radius at which the attack fools the model on a share of `error_rate`. It is 0.0 if
        this share is misclassified without an attack.

    Raises:
        ValueError: for the same reasons as the attack itself; if the attack is targeted or
            has no `epsilon`; if it fools a smaller share than `error_rate` at `max_epsilon`, which
            can happen if the gradient of the model is masked.

    Example:

    >>> import keras, numpy as np, keras_robust as kr
    >>> model = keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(10)])
    >>> x = np.random.rand(32, 8, 8, 1)
    >>> y = np.argmax(model(x), axis=1)
    >>> attack = kr.attacks.FGSM(epsilon=0.1)
    >>> epsilon = kr.evaluation.reference_epsilon(model, x, y, attack=attack, verbose=0)
    >>> 0 < epsilon < 1
    True

    In Yan et al. (2018), the reference is not the undefended model but the authors' defended model:
    its accuracy at `1.0 * epsilon_ref` is 50.00% in each row of Table 1.

    Reference:

    - Yan, Guo and Zhang, 2018, "Deep Defense: Training DNNs with Improved Adversarial Robustness",
      section 4.1: "the smallest epsilon such that 50% of the perturbed images are misclassified by
      our regularized models"
    """
    if "epsilon" not in check_attack(attack).given:
        raise ValueError(f"Argument `attack` must have an `epsilon`. Received: attack={attack!r}")
    validation.check_number("error_rate", error_rate, exclusive=True, maximum=1.0)
    tolerance = validation.check_number("tolerance", tolerance, exclusive=True)
    classifier = Classifier.of(model)
    x, y = as_arrays(x, y, steps)
    attack.check(classifier, x, y)
    if max_epsilon is None:
        max_epsilon = largest_distance(attack, math.prod(x.shape[1:]))
    max_epsilon = validation.check_number("max_epsilon", max_epsilon, exclusive=True)
    batch_size = min(validation.check_count("batch_size", batch_size), len(x))

    labels = sparse(y)
    bar = keras.utils.Progbar(None, verbose=verbose)

    def classes_within(epsilon: float, classes: Labels) -> Any:
        """Returns the classes at a radius, given the classes at a smaller radius."""
        bar.add(1)
        attacked = with_radius(attack, epsilon)
        remaining = classes == labels
        return attack_remaining(
            classifier, x, labels, classes, attacked, remaining, batch_size, seed
        )[1]

    def enough(classes: Labels) -> bool:
        return bool((classes != labels).mean() >= error_rate)

    classes = classifier.classes(x, batch_size)
    if enough(classes):
        return 0.0
    low, high = 0.0, _FIRST * max_epsilon
    while not enough(found := classes_within(high, classes)):
        if high == max_epsilon:
            raise ValueError(
                f"The attack fools the model on {(found != labels).mean():.1%} of the images "
                "within `max_epsilon`, which is less than `error_rate`. Received: "
                f"max_epsilon={max_epsilon:g}, error_rate={error_rate:g}, attack={attack!r}"
            )
        low, high, classes = high, min(2 * high, max_epsilon), found
    while high > max(low * (1 + tolerance), _SMALLEST * max_epsilon):
        middle = (low + high) / 2
        found = classes_within(middle, classes)
        if enough(found):
            high = middle
        else:
            low, classes = middle, found
    return high


def accuracy_at(
    model: Model,
    x: Images,
    y: Labels = None,
    *,
    attack: Attack,
    epsilon: float,
    fractions: Sequence[float] | float = (0.2, 0.5, 1.0),
    batch_size: int = 128,
    seed: int = 0,
    steps: int | None = None,
    verbose: int = 1,
) -> dict[float, float]:
    """Computes the accuracy under an attack at fractions of a reference radius.

    This is `kr.evaluation.robustness_curve` at `fraction * epsilon`: an image that is fooled at one
    fraction counts as fooled at larger fractions.

    Args:
        model: Keras model, or a callable `x -> logits`.
        x: images, shape `(num_examples, ...)`, or a data set of (image, label) pairs, as for
            `kr.evaluate`.
        y: integer or one-hot labels. Omit it if `x` is a data set. Defaults to `None`.
        attack: `kr.attacks.Attack`, untargeted. Yan et al. (2018) use FGSM.
        epsilon: float. The reference radius, in units of `x`: the result of
            `kr.evaluation.reference_epsilon` for the reference model.
        fractions: the fractions, or a single fraction. Defaults to `(0.2, 0.5, 1.0)`.
        batch_size: int. Number of images per batch. Defaults to `128`.
        seed: int. Random seed of the attack. Defaults to `0`.
        steps: int. Number of batches to read from a data set. Defaults to `None`: all of them.
        verbose: int. 1 shows a progress bar, 0 shows nothing. Defaults to `1`.

    Returns:
        Mapping of fractions, ascending, to accuracies from 0 to 1.

    Raises:
        ValueError: for the same reasons as `kr.evaluation.robustness_curve`.

    Example:

    >>> import keras, numpy as np, keras_robust as kr
    >>> model = keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(10)])
    >>> x, y = np.random.rand(32, 8, 8, 1), np.random.randint(0, 10, 32)
    >>> attack = kr.attacks.FGSM(epsilon=0.1)
    >>> list(kr.evaluation.accuracy_at(model, x, y, attack=attack, epsilon=0.1, verbose=0))
    [0.2, 0.5, 1.0]

    Reference:

    - Yan, Guo and Zhang, 2018, "Deep Defense: Training DNNs with Improved Adversarial Robustness",
      section 4.1 and Table 1, columns 6 to 8
    """
    epsilon = validation.check_number("epsilon", epsilon)
    parts = validation.check_several("fractions", fractions, validation.check_number)
    curve = robustness_curve(
        model,
        x,
        y,
        attack=attack,
        epsilons=[part * epsilon for part in parts],
        batch_size=batch_size,
        seed=seed,
        steps=steps,
        verbose=verbose,
    )
    return {part: curve[part * epsilon] for part in parts}
