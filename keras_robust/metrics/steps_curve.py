"""Accuracy against the number of steps of an attack."""

from collections.abc import Sequence

import keras

from keras_robust import validation
from keras_robust.attacks import Attack
from keras_robust.metrics.accuracy import attack_remaining
from keras_robust.metrics.radii import check_attack
from keras_robust.model.arrays import as_arrays
from keras_robust.model.checks import sparse
from keras_robust.model.classifier import Classifier
from keras_robust.types import Images, Labels, Model


def steps_curve(
    model: Model,
    x: Images,
    y: Labels = None,
    *,
    attack: Attack,
    num_steps: Sequence[int] | int,
    batch_size: int = 128,
    seed: int = 0,
    steps: int | None = None,
    verbose: int = 1,
) -> dict[int, float]:
    """Computes the accuracy under an attack with several numbers of steps.

    Every number of steps is run separately on all images that are classified correctly without an
    attack. The curve is not made monotone. It should fall or stay level. If more steps raise the
    accuracy by more than chance, the attack does not follow a useful gradient, and the accuracy
    says nothing about the model. If the curve still falls at its end, the attack needs more steps.

    A given step size is kept, so more steps move further. A step size that the attack derives from
    its number of steps becomes smaller with more steps.

    Args:
        model: Keras model, or a callable `x -> logits`.
        x: images, shape `(num_examples, ...)`, or a data set of (image, label) pairs, as for
            `kr.evaluate`.
        y: integer or one-hot labels. Omit it if `x` is a data set. Defaults to `None`.
        attack: `kr.attacks.Attack` with a `num_steps`, untargeted.
        num_steps: the numbers of steps, or a single number.
        batch_size: int. Number of images per batch. Defaults to `128`.
        seed: int. Random seed of the attack. Defaults to `0`.
        steps: int. Number of batches to read from a data set. Defaults to `None`: all of them.
        verbose: int. 1 shows a progress bar, 0 shows nothing. Defaults to `1`.

    Returns:
        Mapping of numbers of steps, ascending, to accuracies from 0 to 1.

    Raises:
        ValueError: for the same reasons as the attack itself; if the attack is targeted or
            has no `num_steps`; if the argument `num_steps` is empty or contains anything but
            positive integers.

    Example:

    >>> import keras, numpy as np, keras_robust as kr
    >>> model = keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(10)])
    >>> x, y = np.random.rand(32, 8, 8, 1), np.random.randint(0, 10, 32)
    >>> attack = kr.attacks.PGD(epsilon=0.1, step_size=0.01)
    >>> curve = kr.evaluation.steps_curve(model, x, y, attack=attack, num_steps=[1, 10],
    ...                                   verbose=0)
    >>> list(curve)
    [1, 10]

    Reference:

    - Wang et al., 2018, "Adversarial Defense via Data Dependent Activation Function and Total
      Variation Minimization", Figure 6 (a)
    """
    if "num_steps" not in check_attack(attack).arguments:
        raise ValueError(f"Argument `attack` must have a `num_steps`. Received: attack={attack!r}")
    counts = validation.check_several("num_steps", num_steps, validation.check_count)
    classifier = Classifier.of(model)
    x, y = as_arrays(x, y, steps)
    attack.check(classifier, x, y)
    batch_size = min(validation.check_count("batch_size", batch_size), len(x))

    labels = sparse(y)
    clean = classifier.classes(x, batch_size)
    remaining = clean == labels
    bar = keras.utils.Progbar(len(counts), verbose=verbose)
    curve = {}
    for count in counts:
        _, classes = attack_remaining(
            classifier,
            x,
            labels,
            clean,
            attack.replace(num_steps=count),
            remaining,
            batch_size,
            seed,
        )
        curve[count] = float((classes == labels).mean())
        bar.add(1)
    return curve
