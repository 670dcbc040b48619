"""Accuracy under one attack."""

from collections.abc import Callable
from typing import Any

import numpy as np
from keras import ops

from keras_robust import validation
from keras_robust.attacks import Attack
from keras_robust.evaluation.arrays import as_arrays, padded_batches, predicted_classes, sparse


def check_attack(attack: Any) -> Attack:
    if not isinstance(attack, Attack) or attack.targeted:
        raise ValueError(
            "Robust accuracy needs an untargeted `keras_robust.attacks.Attack`. "
            f"Received: {attack!r}"
        )
    return attack


def attack_standing(
    model: Any,
    x: np.ndarray,
    y: np.ndarray,
    attack: Attack,
    standing: np.ndarray,
    batch_size: int,
    seed: int,
    on_batch: Callable[[np.ndarray, np.ndarray, np.ndarray], None] = lambda *_: None,
) -> np.ndarray:
    """Attacks the examples that are still standing; returns those that stand after it.

    Args:
        standing: bool array, shape `(num_examples,)`.
        on_batch: called with the indices of a batch, its perturbed images and their predicted
            classes.
    """
    after = standing.copy()
    indices = np.flatnonzero(standing)
    batch_size = min(batch_size, len(x))
    labels = sparse(y)
    for number, batch in enumerate(padded_batches(indices, batch_size)):
        batch_seed = int(np.random.SeedSequence([seed, number]).generate_state(1)[0]) >> 1
        x_adv = ops.convert_to_numpy(attack(model, x[batch], labels[batch], seed=batch_seed))
        real = min(batch_size, len(indices) - number * batch_size)
        classes = predicted_classes(model, x_adv, batch_size)[:real]
        after[batch[:real]] = classes == labels[batch[:real]]
        on_batch(batch[:real], x_adv[:real], classes)
    return after


def robust_accuracy(
    model: Any, x: Any, y: Any = None, *, attack: Attack, batch_size: int = 128, seed: int = 0
) -> float:
    """Share of examples that are classified correctly, and still are after the attack.

    Args:
        model: Keras model, or a callable `x -> logits`.
        x: images, shape `(num_examples, ...)`, or a `tf.data.Dataset` of pairs of images and
            labels.
        y: integer or one-hot labels. Defaults to `None`, for a data set.
        attack: `kr.attacks.Attack`, untargeted.
        batch_size: int. Defaults to `128`.
        seed: int. Seed of the attack's random numbers. Defaults to `0`.

    Returns:
        Float from 0 to 1.

    Raises:
        ValueError: as the attack, and if it is targeted.

    Example:

    >>> import keras, numpy as np, keras_robust as kr
    >>> model = keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(10)])
    >>> x, y = np.random.rand(32, 8, 8, 1), np.random.randint(0, 10, 32)
    >>> kr.evaluation.robust_accuracy(model, x, y, attack=kr.attacks.FGSM(epsilon=1.0))
    0.0
    """
    x, y = as_arrays(x, y)
    check_attack(attack).check(model, x, y)
    batch_size = min(validation.check_count("batch_size", batch_size), len(x))
    standing = predicted_classes(model, x, batch_size) == sparse(y)
    return float(attack_standing(model, x, y, attack, standing, batch_size, seed).mean())
