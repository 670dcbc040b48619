"""Draws the examples for a template from the training data of `fit`."""

import numpy as np

from keras_robust.layers.template import first_in_order, sparse_with_unlabeled
from keras_robust.layers.wnll_template import WNLLTemplate
from keras_robust.model.arrays import as_array, batches
from keras_robust.types import Images, Labels

# Reading a data set stops after this many examples, if they are enough for the template.
_MOST_READ = 100_000


def draw_rows(template: WNLLTemplate, y: Labels) -> tuple[np.ndarray, np.ndarray]:
    """Returns the rows of the arrays that `adapt_template` would use, and their labels.

    Raises:
        ValueError: if the labels cannot fill the template.
    """
    labels = _integers(template, y)
    template.check_labels(labels)
    rows = template.chosen(labels, seed=0)
    return rows, labels[rows]


def draw_from_data_set(
    template: WNLLTemplate, x: Images, steps: int | None
) -> tuple[np.ndarray, np.ndarray]:
    """Draws images and labels as `adapt_template` does, while reading a data set once.

    Memory holds at most twice as many images as are drawn, plus one batch.

    Raises:
        ValueError: if the labels cannot fill the template.
    """
    generator = np.random.default_rng(0)
    size, unlabeled_size = template.size, template.unlabeled_size
    pool: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    num_held = num_read = num_labeled = 0
    classes: set[int] = set()

    def reduced() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Reduces the pool to the examples that come first in the order of their random keys."""
        images, labels, keys = (np.concatenate(part) for part in zip(*pool, strict=True))
        order = np.argsort(keys)
        is_labeled = labels[order] >= 0
        labeled = first_in_order(labels, order[is_labeled], size)
        rows = np.concatenate([labeled, order[~is_labeled][:unlabeled_size]])
        return images[rows], labels[rows], keys[rows]

    for batch, y in batches(x, steps):
        # Pairs consist of clean and adversarial images: use the clean ones.
        images = as_array(batch[0] if isinstance(batch, tuple | list) else batch)
        labels = _integers(template, y)
        pool.append((images, labels, generator.random(len(labels))))
        num_held, num_read = num_held + len(labels), num_read + len(labels)
        num_labeled += int((labels >= 0).sum())
        classes.update(labels[labels >= 0].tolist())
        if num_held > 2 * (size + unlabeled_size):
            pool = [reduced()]
            num_held = len(pool[0][1])
        is_enough = num_labeled >= size and num_read - num_labeled >= unlabeled_size
        if num_read >= _MOST_READ and is_enough and len(classes) == template.num_classes:
            break
    images, labels, _ = reduced()
    template.check_labels(labels)
    return images, labels


def _integers(template: WNLLTemplate, y: Labels) -> np.ndarray:
    """Converts labels to integers, including whole numbers stored as floats."""
    labels = sparse_with_unlabeled(as_array(y, "y"), template.num_classes)
    is_whole = labels.dtype.kind == "f" and (labels == np.round(labels)).all()
    return labels.astype("int32") if is_whole else labels
