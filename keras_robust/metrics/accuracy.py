"""Robust accuracy under a single attack."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from keras_robust import validation
from keras_robust.attacks import Attack
from keras_robust.attacks.inputs import as_mask
from keras_robust.attacks.journal import Journal
from keras_robust.metrics.perturbed import batch_seed
from keras_robust.metrics.radii import check_attack
from keras_robust.model.arrays import as_images
from keras_robust.model.checks import sparse
from keras_robust.model.classifier import Classifier
from keras_robust.model.images import LazyImages
from keras_robust.types import Images, Labels, Model


def attack_in_batches(
    classifier: Classifier,
    x: np.ndarray | LazyImages,
    labels: np.ndarray,
    attack: Attack,
    remaining: np.ndarray,
    batch_size: int,
    seed: int,
    needs_gradient: bool = True,
    mask: np.ndarray | None = None,
) -> Iterator[tuple[np.ndarray, Callable[..., dict[str, np.ndarray]]]]:
    """Yields batches of the remaining examples, each with a function that attacks it.

    The last batch is padded with its last example, so the model always receives batches of the same
    size. The seed of a batch depends only on the batch's number.

    If predictions depend on the batch, the batches consist of all examples in order, remaining or
    not, and each batch is attacked as a whole.

    Args:
        classifier: the model.
        x: images.
        labels: int array, shape `(num_examples,)`.
        attack: the attack.
        remaining: bool array, shape `(num_examples,)`: the examples to attack.
        batch_size: int.
        seed: int.
        needs_gradient: bool. Whether a missing gradient is an error. Defaults to `True`.
        mask: bool array of the shape of `x`, or `None`.

    Yields:
        The indices of a batch's examples, and a function that attacks them. The function takes an
        optional journal. It returns arrays with one value per example: the fields of
        `kr.attacks.AttackResult`, with each norm under its own name; `examples`, the indices;
        `images`, the clean images; and `classes`, the predicted classes of the adversarial images.
        The class is -1 if the attack has succeeded but the model, which is random, predicts the
        true class again. `without_gradient` holds names of attacks, and is empty if
        `needs_gradient` is true.
    """
    is_joint = classifier.depends_on_batch
    indices = np.arange(len(x)) if is_joint else np.flatnonzero(remaining)
    for number, batch in enumerate(classifier.batches(indices, batch_size)):
        places = np.arange(min(batch_size, len(indices) - number * batch_size))
        if is_joint:
            places = np.flatnonzero(remaining[batch])
            if not len(places):
                continue

        def attack_batch(
            journal: Journal | None = None,
            *,
            batch: np.ndarray = batch,
            number: int = number,
            places: np.ndarray = places,
        ) -> dict[str, np.ndarray]:
            images = x[batch]
            result = attack.run_checked(
                classifier,
                images,
                labels[batch],
                batch_seed(seed, number),
                needs_gradient=needs_gradient,
                journal=journal,
                mask=None if mask is None else mask[batch],
            )
            classes = classifier.classes(result.x_adv, batch_size)
            # A random model may be correct again in this new pass. The attack's judgement counts.
            classes[result.success & (classes == labels[batch])] = -1
            classes = np.where(result.success, classes, labels[batch])
            arrays = {**vars(result), **result.norms, "classes": classes}
            del arrays["norms"], arrays["without_gradient"]
            arrays |= {"examples": batch, "images": images}
            found = {name: values[places] for name, values in arrays.items()}
            return {**found, "without_gradient": np.array(result.without_gradient, str)}

        yield batch[places], attack_batch


def attack_remaining(
    classifier: Classifier,
    x: np.ndarray,
    labels: np.ndarray,
    classes: np.ndarray,
    attack: Attack,
    remaining: np.ndarray,
    batch_size: int,
    seed: int,
    progress: Callable[[float], None] = lambda accuracy: None,
) -> tuple[np.ndarray, np.ndarray]:
    """Attacks only the remaining examples.

    Args:
        classifier: the model.
        x: images.
        labels: int array, shape `(num_examples,)`.
        classes: int array, shape `(num_examples,)`: the classes predicted for `x`.
        attack: the attack.
        remaining: bool array, shape `(num_examples,)`: the examples to attack.
        batch_size: int.
        seed: int.
        progress: function called after each batch with the share of its examples that were not
            fooled.

    Returns:
        The images, perturbed where the attack has succeeded, and the classes predicted for them.
    """
    x_adv, classes = x.copy(), classes.copy()
    batches = attack_in_batches(classifier, x, labels, attack, remaining, batch_size, seed)
    for batch, attack_batch in batches:
        attacked = attack_batch()
        x_adv[batch], classes[batch] = attacked["x_adv"], attacked["classes"]
        progress(float(np.mean(~attacked["success"])))
    return x_adv, classes


def robust_accuracy(
    model: Model,
    x: Images,
    y: Labels = None,
    *,
    attack: Attack,
    batch_size: int = 128,
    seed: int = 0,
    steps: int | None = None,
    mask: Any = None,
) -> float:
    """Computes the share of examples that are classified correctly before and after an attack.

    Args:
        model: Keras model, or a callable `x -> logits`.
        x: images, shape `(num_examples, ...)`, or a data set of (image, label) pairs, as for
            `kr.evaluate`.
        y: integer or one-hot labels. Omit it if `x` is a data set. Defaults to `None`.
        attack: `kr.attacks.Attack`, untargeted.
        batch_size: int. Number of images per batch. Defaults to `128`.
        seed: int. Random seed of the attack. Defaults to `0`.
        steps: int. Number of batches to read from a data set. Defaults to `None`: all of them.
        mask: array of 0 and 1 that broadcasts to all images. The attack may change only the values
            where it is 1. Defaults to `None`: it may change every value.

    Returns:
        Float from 0 to 1.

    Raises:
        ValueError: for the same reasons as the attack itself, and if it is targeted.

    Example:

    >>> import keras, numpy as np, keras_robust as kr
    >>> model = keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(10)])
    >>> x, y = np.random.rand(32, 8, 8, 1), np.random.randint(0, 10, 32)
    >>> kr.evaluation.robust_accuracy(model, x, y, attack=kr.attacks.FGSM(epsilon=1.0))
    0.0
    """
    classifier = Classifier.of(model)
    x, y = as_images(x, y, steps)
    check_attack(attack).check(classifier, x, y)
    mask = as_mask(mask, x.shape)
    batch_size = min(validation.check_count("batch_size", batch_size), len(x))
    labels = sparse(y)
    correct = classifier.classes(x, batch_size) == labels
    batches = attack_in_batches(classifier, x, labels, attack, correct, batch_size, seed, mask=mask)
    for batch, attack_batch in batches:
        correct[batch] = attack_batch()["classes"] == labels[batch]
    return float(correct.mean())
