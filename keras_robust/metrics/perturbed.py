"""Perturbs images, whether or not they fool the model."""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from keras import ops

from keras_robust import backend
from keras_robust.attacks import Attack
from keras_robust.attacks.inputs import as_working_dtype
from keras_robust.model.classifier import Classifier
from keras_robust.types import Images, Labels, Seed


def batch_seed(seed: int, number: int) -> int:
    """Returns the random seed for attacking a batch."""
    return int(np.random.SeedSequence([seed, number]).generate_state(1)[0]) >> 1


def perturbed_images(
    classifier: Classifier,
    x: np.ndarray,
    labels: np.ndarray,
    attack: Attack,
    batch_size: int,
    seed: int,
    progress: Callable[[], None] = lambda: None,
    mask: np.ndarray | None = None,
) -> np.ndarray:
    """Perturbs all images with `attack.perturb`, in batches.

    Unlike `attack.run`, it returns no unperturbed images. If the attack fails on an image, the
    result is the strongest perturbation that it has found.

    Args:
        classifier: the model.
        x: images.
        labels: int array, shape `(num_examples,)`.
        attack: the attack.
        batch_size: int.
        seed: int.
        progress: function called after each batch.
        mask: bool array of the shape of `x`, or `None`.
    """
    has_mask = mask is not None
    function = functools.partial(_perturbed, attack, has_mask)
    perturb = classifier.compiled(("perturb", attack.key, has_mask), function)
    values = attack.data_arrays()
    x_adv = np.empty_like(x)
    for number, indices in enumerate(classifier.batches(np.arange(len(x)), batch_size)):
        seed_of_batch = backend.make_seed(batch_seed(seed, number))
        masks = [] if mask is None else [mask[indices]]
        found = perturb(x[indices], labels[indices], seed_of_batch, *masks, *values)
        x_adv[indices] = ops.convert_to_numpy(found)
        progress()
    if not np.isfinite(x_adv.astype("float32")).all():
        raise ValueError(
            f"{attack!r} returned NaN or infinite values: the model's gradient is not finite "
            "somewhere in the ball of the attack."
        )
    return x_adv


def _perturbed(
    attack: Attack,
    has_mask: bool,
    classifier: Classifier,
    x: Images,
    y: Labels,
    seed: Seed,
    *data: Any,
) -> Any:
    mask, data = (data[0], data[1:]) if has_mask else (None, data)
    return attack.with_data(data, as_working_dtype(x).dtype).perturb(classifier, x, y, seed, mask)
