"""The relative size of the perturbations that fool a model."""

import warnings
from typing import Any

import keras
import numpy as np

from keras_robust import validation
from keras_robust.attacks import Attack
from keras_robust.attacks.result import perturbation_norms
from keras_robust.metrics.perturbed import perturbed_images
from keras_robust.metrics.radii import check_attack
from keras_robust.model.arrays import (
    as_array,
    as_arrays,
    check_images,
    check_range,
    is_data_set,
    sparse,
)
from keras_robust.model.classifier import Classifier
from keras_robust.ops import LEAST_SHARE


def rho(
    model: Any,
    x: Any,
    y: Any = None,
    norm: str = "l2",
    *,
    attack: Attack | None = None,
    mean: Any = 0.0,
    batch_size: int = 128,
    seed: int = 0,
    steps: int | None = None,
    verbose: int = 1,
) -> float:
    """Mean relative size of the perturbations that an attack needs.

        rho_p = 1 / |D| * sum over x in D of ||Delta_x||_p / ||x||_p

    where `Delta_x` is the perturbation that a minimum-norm attack (DeepFool, C&W) finds for
    `x`, overshoot included. The larger, the more robust. For an attack that is told a radius it
    says little: such an attack has no reason to stay below it.

    Every image counts, whether it is classified correctly or not: without `y` the attack leads
    away from the class that the model predicts, as DeepFool is defined. With `y` it leads away
    from the true class, so that an image which is misclassified to begin with counts as 0.

    Where the attack fails, the strongest perturbation that it has found counts (it is `perturb`
    that is measured), as in the paper, whose DeepFool has few steps; a warning then says for how
    many images. Where they are many, the figure says what the attack did rather than what the
    model withstands.

    Args:
        model: Keras model, or a callable `x -> logits`.
        x: images, shape `(num_examples, ...)`, or a data set of pairs of images and labels, as for
            `kr.evaluate`, whose labels are not used.
        y: integer or one-hot labels to lead away from. Defaults to `None`: the classes that the
            model predicts.
        norm: `"l1"`, `"l2"` or `"linf"`. Defaults to `"l2"`.
        attack: `kr.attacks.Attack`, untargeted, which looks for small perturbations. Defaults to
            `None`, which is refused.
        mean: number or array, subtracted from `x` in the denominator. Defaults to `0.0`. The
            paper's networks take images that the mean of the training set was subtracted from;
            for a model that does this itself, pass that mean to get the paper's figure.
        batch_size: int. Defaults to `128`.
        seed: int. Seed of the attack's random numbers. Defaults to `0`.
        steps: int. How many batches of a data set to read. Defaults to `None`: all of them.
        verbose: int. 1 shows a progress bar, 0 nothing. Defaults to `1`.

    Returns:
        Float, not negative.

    Raises:
        ValueError: as the attack, and if it is missing or targeted, or passed in the place of `y`;
            or if all images, less `mean`, are 0.

    Example:

    >>> import keras, numpy as np, keras_robust as kr
    >>> model = keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(10)])
    >>> x = np.random.rand(32, 8, 8, 1)
    >>> 0 < kr.evaluation.rho(model, x, attack=kr.attacks.DeepFool(), verbose=0) < 1
    True

    Departures from the paper:

    - Images are clipped to the attack's `bounds`, which the paper's DeepFool is not; pass it wide
      `bounds` to have none.
    - `||x||_p` counts as at least a tenth of its mean over the images: a black one has no length
      to measure by. A warning says for how many images. There is none in MNIST, Fashion-MNIST
      or CIFAR-10.

    Reference:

    - Yan et al., Deep Defense: Training DNNs with Improved Adversarial Robustness, eq. 7
    """
    if isinstance(y, Attack):
        raise ValueError(
            "The order of the arguments is `rho(model, x, y=None, norm='l2', *, attack=...)`: pass "
            f"the attack by its name. Received: y={y!r}"
        )
    attack = check_attack(attack)
    validation.check_choice("norm", norm, ("l1", "l2", "linf"))
    validation.check_count("batch_size", batch_size)
    classifier = Classifier.of(model)
    x = as_arrays(x, y, steps)[0] if is_data_set(x) else as_array(x)
    check_images(x)
    check_range(x, attack.bounds)
    batch_size = min(batch_size, len(x))
    if y is None:
        classifier.check_structure()
        y = classifier.classes(x, batch_size)
    y = as_array(y, "y")
    attack.check(classifier, x, y)
    sizes = perturbation_norms(np.broadcast_to(np.asarray(mean), x.shape), x)[norm]
    if not (sizes > 0).any():
        raise ValueError(
            "Some image in argument `x`, less `mean`, must have a norm other than 0 to divide by. "
            f"Received: {len(x)} images with a norm of 0"
        )
    least = LEAST_SHARE * sizes.mean()
    if (sizes < least).any():
        warnings.warn(
            f"{int((sizes < least).sum())} of {len(x)} images are all but equal to `mean` (black, "
            "by default): their norms count in rho as a tenth of the mean norm.",
            stacklevel=2,
        )

    labels = sparse(y)
    bar = keras.utils.Progbar(-(-len(x) // batch_size), verbose=verbose)
    x_adv = perturbed_images(
        classifier, x, labels, attack, batch_size, seed, progress=lambda: bar.add(1)
    )
    num_failed = int((classifier.classes(x_adv, batch_size) == labels).sum())
    if num_failed:
        warnings.warn(
            f"{type(attack).__name__} has failed on {num_failed} of {len(x)} images: what it "
            "tried on them counts in rho, but does not fool the model.",
            stacklevel=2,
        )
    return float((perturbation_norms(x, x_adv)[norm] / np.maximum(sizes, least)).mean())
