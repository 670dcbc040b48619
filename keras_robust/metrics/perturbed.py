"""Perturbed images, whether they fool the model or not."""

from collections.abc import Callable
from typing import Any

import numpy as np
from keras import ops

from keras_robust import backend
from keras_robust.attacks import Attack
from keras_robust.model.arrays import model_batches


def batch_seed(seed: int, number: int) -> int:
    """The seed of a batch's attack."""
    return int(np.random.SeedSequence([seed, number]).generate_state(1)[0]) >> 1


def perturbed_images(
    model: Any,
    x: np.ndarray,
    labels: np.ndarray,
    attack: Attack,
    batch_size: int,
    seed: int,
    progress: Callable[[], None] = lambda: None,
) -> np.ndarray:
    """What an attack makes of all images: `attack.perturb`, in batches.

    Unlike `attack.run`, it leaves no image as it was: where the attack fails, this is the
    strongest perturbation that it has found.

    Args:
        labels: int array, shape `(num_examples,)`.
        progress: called after each batch.
    """
    perturb = backend.compiled(
        model,
        ("perturb", type(attack), repr(sorted(vars(attack).items()))),
        lambda model, x, y, seed: attack.perturb(model, x, y, seed),
    )
    x_adv = np.empty_like(x)
    for number, indices in enumerate(model_batches(model, np.arange(len(x)), batch_size)):
        seed_of_batch = backend.make_seed(batch_seed(seed, number))
        x_adv[indices] = ops.convert_to_numpy(perturb(x[indices], labels[indices], seed_of_batch))
        progress()
    if not np.isfinite(x_adv.astype("float32")).all():
        raise ValueError(
            f"{attack!r} returned NaN or infinite values: the model's gradient is not finite "
            "somewhere in its reach."
        )
    return x_adv
