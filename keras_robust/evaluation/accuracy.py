"""Accuracy under one attack."""

from collections.abc import Callable
from typing import Any

import numpy as np
from keras import ops

from keras_robust import validation
from keras_robust.attacks import Attack
from keras_robust.evaluation.arrays import as_arrays, padded_batches, predicted_classes, sparse


def check_attack(attack: Any) -> Attack:
    """An untargeted attack."""
    if not isinstance(attack, Attack) or attack.targeted:
        raise ValueError(
            "Robust accuracy needs an untargeted `keras_robust.attacks.Attack`. "
            f"Received: {attack!r}"
        )
    return attack


def attack_standing(
    model: Any,
    x: np.ndarray,
    labels: np.ndarray,
    classes: np.ndarray,
    attack: Attack,
    standing: np.ndarray,
    batch_size: int,
    seed: int,
    progress: Callable[[float], None] = lambda accuracy: None,
) -> tuple[np.ndarray, np.ndarray]:
    """Attacks the examples that are still standing and leaves the others alone.

    Args:
        classes: int array, shape `(num_examples,)`: the classes predicted for `x`.
        standing: bool array, shape `(num_examples,)`.
        progress: called after each batch with the share of it that still stands.

    Returns:
        The images, perturbed where they were attacked, and the classes predicted for them.
    """
    x, classes = x.copy(), classes.copy()
    indices = np.flatnonzero(standing)
    for number, batch in enumerate(padded_batches(indices, batch_size)):
        batch_seed = int(np.random.SeedSequence([seed, number]).generate_state(1)[0]) >> 1
        x_adv = ops.convert_to_numpy(attack(model, x[batch], labels[batch], seed=batch_seed))
        batch = batch[: len(indices) - number * batch_size]
        x[batch] = x_adv[: len(batch)]
        classes[batch] = predicted_classes(model, x_adv, batch_size)[: len(batch)]
        progress(float((classes[batch] == labels[batch]).mean()))
    return x, classes


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
    labels = sparse(y)
    classes = predicted_classes(model, x, batch_size)
    standing = classes == labels
    _, classes = attack_standing(model, x, labels, classes, attack, standing, batch_size, seed)
    return float((classes == labels).mean())
