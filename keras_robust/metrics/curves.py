"""Accuracy against the radius of the perturbation."""

from collections.abc import Sequence

import keras
import numpy as np

from keras_robust import validation
from keras_robust.attacks import Attack
from keras_robust.attacks.result import perturbation_norms
from keras_robust.metrics.accuracy import attack_remaining
from keras_robust.metrics.radii import check_attack, with_radius
from keras_robust.model.arrays import as_arrays
from keras_robust.model.checks import sparse
from keras_robust.model.classifier import Classifier
from keras_robust.types import Images, Labels, Model


def robustness_curve(
    model: Model,
    x: Images,
    y: Labels = None,
    *,
    attack: Attack,
    epsilons: Sequence[float] | float,
    norm: str | None = None,
    batch_size: int = 128,
    seed: int = 0,
    steps: int | None = None,
    verbose: int = 1,
) -> dict[float, float]:
    """Computes the accuracy under an attack at several radii.

    An attack with an `epsilon` is run at each radius. An image that it fools at one radius counts
    as fooled at every larger radius, because the larger ball contains the same perturbed image. It
    is not attacked again, so the curve never rises. A given step size is scaled with the radius.

    An attack without an `epsilon` (DeepFool, C&W, or FAB with `epsilon=None`) searches for the
    smallest perturbation and is run once. The accuracy at a radius is the share of images that are
    classified correctly and are not fooled by a perturbation of at most this norm.

    Args:
        model: Keras model, or a callable `x -> logits`.
        x: images, shape `(num_examples, ...)`, or a data set of (image, label) pairs, as for
            `kr.evaluate`.
        y: integer or one-hot labels. Omit it if `x` is a data set. Defaults to `None`.
        attack: `kr.attacks.Attack`, untargeted.
        epsilons: the radii, in units of `x`, or a single radius.
        norm: `"l1"`, `"l2"` or `"linf"`. The norm of the radii for an attack without an `epsilon`.
            Defaults to `None`: the `norm` of the attack.
        batch_size: int. Number of images per batch. Defaults to `128`.
        seed: int. Random seed of the attack. Defaults to `0`.
        steps: int. Number of batches to read from a data set. Defaults to `None`: all of them.
        verbose: int. 1 shows a progress bar, 0 shows nothing. Defaults to `1`.

    Returns:
        Mapping of radii, ascending, to accuracies from 0 to 1.

    Raises:
        ValueError: for the same reasons as the attack itself; if the attack is targeted or
            an ensemble; if `epsilons` is empty or contains a negative number; if `norm` is given
            for an attack with an `epsilon`, or is missing for an attack that has no `norm` either.

    Example:

    >>> import keras, numpy as np, keras_robust as kr
    >>> model = keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(10)])
    >>> x, y = np.random.rand(32, 8, 8, 1), np.random.randint(0, 10, 32)
    >>> attack = kr.attacks.PGD(epsilon=0.1)
    >>> curve = kr.evaluation.robustness_curve(model, x, y, attack=attack,
    ...                                        epsilons=[0.0, 0.1, 0.2], verbose=0)
    >>> list(curve)
    [0.0, 0.1, 0.2]
    """
    check_attack(attack)
    radii = validation.check_several("epsilons", epsilons, validation.check_number)
    has_epsilon = "epsilon" in attack.given
    if hasattr(attack, "attacks"):
        raise ValueError(
            "An ensemble has no radius of its own: compute a curve for each of its attacks. "
            f"Received: attack={attack!r}"
        )
    if has_epsilon and norm is not None:
        raise ValueError(
            "Argument `norm` must be None for an attack that has an `epsilon`: the radii are in "
            f"the attack's own norm. Received: norm={norm!r}, attack={attack!r}"
        )
    if not has_epsilon:
        norm = norm or getattr(attack, "norm", None)
        validation.check_choice("norm", norm, ("l1", "l2", "linf"))
    classifier = Classifier.of(model)
    x, y = as_arrays(x, y, steps)
    attack.check(classifier, x, y)
    batch_size = min(validation.check_count("batch_size", batch_size), len(x))
    labels = sparse(y)
    classes = classifier.classes(x, batch_size)
    if norm is not None:
        distances = _distances(
            classifier, x, labels, classes, attack, norm, batch_size, seed, verbose
        )
        return {epsilon: float((distances > epsilon).mean()) for epsilon in radii}

    bar = keras.utils.Progbar(len(radii), verbose=verbose)
    curve = {}
    for epsilon in radii:
        if epsilon > 0:
            scaled = with_radius(attack, epsilon)
            remaining = classes == labels
            _, classes = attack_remaining(
                classifier, x, labels, classes, scaled, remaining, batch_size, seed
            )
        curve[epsilon] = float((classes == labels).mean())
        bar.add(1)
    return curve


def _distances(
    classifier: Classifier,
    x: np.ndarray,
    labels: np.ndarray,
    classes: np.ndarray,
    attack: Attack,
    norm: str,
    batch_size: int,
    seed: int,
    verbose: int,
) -> np.ndarray:
    """Returns the norm of the perturbation that fools the model on each image.

    It is 0 if the image is misclassified without an attack, and infinity if the attack fails.
    """
    remaining = classes == labels
    bar = keras.utils.Progbar(-(-int(remaining.sum()) // batch_size) or None, verbose=verbose)
    x_adv, classes = attack_remaining(
        classifier, x, labels, classes, attack, remaining, batch_size, seed, lambda _: bar.add(1)
    )
    return np.where(classes == labels, np.inf, perturbation_norms(x, x_adv)[norm])
