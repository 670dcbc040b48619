"""Accuracy under one attack."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from keras_robust import validation
from keras_robust.attacks import Attack
from keras_robust.attacks.inputs import as_mask
from keras_robust.attacks.journal import Journal
from keras_robust.metrics.perturbed import batch_seed
from keras_robust.metrics.radii import check_attack
from keras_robust.model.arrays import as_images, sparse
from keras_robust.model.classifier import Classifier
from keras_robust.model.images import Images


def attack_in_batches(
    classifier: Classifier,
    x: np.ndarray | Images,
    labels: np.ndarray,
    attack: Attack,
    remaining: np.ndarray,
    batch_size: int,
    seed: int,
    needs_gradient: bool = True,
    mask: np.ndarray | None = None,
) -> Iterator[tuple[np.ndarray, Callable[..., dict[str, np.ndarray]]]]:
    """The examples that are still classified correctly, in batches, with what attacks them.

    The last batch is filled up with its last example, so that the model always sees batches of
    one size. The seed of a batch depends on its number alone.

    Where the model's answer to an example depends on the others in its batch, the batches are
    those of all examples in their order, remaining or not, and each is attacked as a whole.

    Args:
        remaining: bool array, shape `(num_examples,)`.
        mask: bool array of the shape of `x`, or `None`.

    Yields:
        The indices of a batch's examples, and a function that attacks them, with a journal if it is
        given one. It returns arrays with one value for each: those of `kr.attacks.AttackResult`,
        the norms by their names, `examples`, their indices, `images`, as they were, and `classes`,
        what the model predicts, -1 where that is a matter of chance; and `without_gradient`, names,
        where a gradient is not needed.
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
            # A random model may recover when it is asked again: what the attack saw counts.
            classes[result.success & (classes == labels[batch])] = -1
            classes = np.where(result.success, classes, labels[batch])
            arrays = {**vars(result), **result.norms, "classes": classes}
            del arrays["norms"], arrays["without_gradient"]
            arrays |= {"examples": batch, "images": images}
            found = {name: values[places] for name, values in arrays.items()}
            return {**found, "without_gradient": np.array(result.without_gradient, str)}

        yield batch[places], attack_batch


def attack_standing(
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
    """Attacks the examples that are still classified correctly, and no others.

    Args:
        classes: int array, shape `(num_examples,)`: the classes predicted for `x`.
        remaining: bool array, shape `(num_examples,)`.
        progress: called after each batch with the share of it that still stands.

    Returns:
        The images, perturbed where an attack has succeeded, and the classes predicted for them.
    """
    x_adv, classes = x.copy(), classes.copy()
    batches = attack_in_batches(classifier, x, labels, attack, remaining, batch_size, seed)
    for batch, attack_batch in batches:
        attacked = attack_batch()
        x_adv[batch], classes[batch] = attacked["x_adv"], attacked["classes"]
        progress(float(np.mean(~attacked["success"])))
    return x_adv, classes


def robust_accuracy(
    model: Any,
    x: Any,
    y: Any = None,
    *,
    attack: Attack,
    batch_size: int = 128,
    seed: int = 0,
    steps: int | None = None,
    mask: Any = None,
) -> float:
    """Share of examples that are classified correctly, and still are after the attack.

    Args:
        model: Keras model, or a callable `x -> logits`.
        x: images, shape `(num_examples, ...)`, or a data set of pairs of images and labels,
            as for `kr.evaluate`.
        y: integer or one-hot labels. Defaults to `None`, for a data set.
        attack: `kr.attacks.Attack`, untargeted.
        batch_size: int. Defaults to `128`.
        seed: int. Seed of the attack's random numbers. Defaults to `0`.
        steps: int. How many batches of a data set to read. Defaults to `None`: all of them.
        mask: array of 0 and 1 that broadcasts to all images, 1 where the attack may change them.
            Defaults to `None`: everywhere.

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
