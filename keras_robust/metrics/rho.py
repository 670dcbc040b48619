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
from keras_robust.model.arrays import as_array, as_arrays, is_data_set
from keras_robust.model.checks import check_images, check_range, sparse
from keras_robust.model.classifier import Classifier
from keras_robust.ops.balls import LEAST_SHARE
from keras_robust.types import Images, Labels, Model


def rho(
    model: Model,
    x: Images,
    y: Labels = None,
    norm: str = "l2",
    *,
    attack: Attack | None = None,
    mean: Any = 0.0,
    batch_size: int = 128,
    seed: int = 0,
    steps: int | None = None,
    verbose: int = 1,
) -> float:
    """Computes the mean relative size of the perturbations that an attack needs.

        rho_p = 1 / |D| * sum over x in D of ||Delta_x||_p / ||x||_p

    `Delta_x` is the perturbation that a minimum-norm attack (DeepFool, C&W) finds for `x`,
    including its overshoot. A larger value means a more robust model. For an attack with a fixed
    radius, rho says little, because such an attack has no reason to stay below its radius.

    Every image counts, whether or not it is classified correctly. Without `y`, the attack moves
    away from the class that the model predicts, as in the definition of DeepFool. With `y`, it
    moves away from the true class, and an image that is misclassified without an attack counts as
    0.

    Args:
        model: Keras model, or a callable `x -> logits`.
        x: images, shape `(num_examples, ...)`, or a data set of (image, label) pairs, as for
            `kr.evaluate`. The labels of a data set are not used.
        y: integer or one-hot labels to move away from. Defaults to `None`: the classes that the
            model predicts.
        norm: `"l1"`, `"l2"` or `"linf"`. Defaults to `"l2"`.
        attack: untargeted `kr.attacks.Attack` that searches for small perturbations. Required.
            Defaults to `None`, which raises a `ValueError`.
        mean: number or array that is subtracted from `x` in the denominator. The networks of Yan
            et al. (2018) take images from which the mean of the training set was subtracted. If
            your model subtracts it itself, pass this mean to reproduce their figure. Defaults to
            `0.0`.
        batch_size: int. Number of images per batch. Defaults to `128`.
        seed: int. Random seed of the attack. Defaults to `0`.
        steps: int. Number of batches to read from a data set. Defaults to `None`: all of them.
        verbose: int. 1 shows a progress bar, 0 shows nothing. Defaults to `1`.

    Returns:
        Float, not negative.

    Raises:
        ValueError: for the same reasons as the attack itself; if `attack` is missing,
            targeted, or passed in the place of `y`; or if all images are 0 after `mean` is
            subtracted.

    Example:

    >>> import keras, numpy as np, keras_robust as kr
    >>> model = keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(10)])
    >>> x = np.random.rand(32, 8, 8, 1)
    >>> 0 < kr.evaluation.rho(model, x, attack=kr.attacks.DeepFool(), verbose=0) < 1
    True

    If the attack fails on an image, the strongest perturbation that it has found counts (the result
    of `attack.perturb`), as in Yan et al. (2018), whose DeepFool takes few steps. A warning reports
    how many images are affected. If there are many, rho describes the attack rather than the
    robustness of the model.

    Departures from the paper:

    - Images are clipped to the `bounds` of the attack. The paper's DeepFool does not clip: pass
      wide `bounds` to the attack to disable clipping.
    - `||x||_p` counts as at least a tenth of its mean over the images. The norm of a nearly black
      image is close to zero, so a ratio to it would dominate the mean or be infinite. A warning
      reports how many images are affected. MNIST, Fashion-MNIST and CIFAR-10 contain none.

    Reference:

    - Yan, Guo and Zhang, 2018, "Deep Defense: Training DNNs with Improved Adversarial Robustness",
      eq. 7
    """
    if isinstance(y, Attack):
        raise ValueError(
            "The order of the arguments is `rho(model, x, y=None, norm='l2', *, attack=...)`: pass "
            f"the attack by keyword. Received: y={y!r}"
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
            "At least one image in argument `x`, less `mean`, must have a norm other than 0. "
            f"Received: {len(x)} images with a norm of 0"
        )
    least = LEAST_SHARE * sizes.mean()
    if (sizes < least).any():
        warnings.warn(
            f"{int((sizes < least).sum())} of {len(x)} images are nearly equal to `mean` (black, "
            "by default). In rho, their norms count as a tenth of the mean norm.",
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
            f"{type(attack).__name__} failed on {num_failed} of {len(x)} images. Their "
            "perturbations count in rho, although they do not fool the model.",
            stacklevel=2,
        )
    return float((perturbation_norms(x, x_adv)[norm] / np.maximum(sizes, least)).mean())
