"""The examples for a template, drawn from what `fit` was given."""

from typing import Any

import numpy as np

from keras_robust.layers.template import first_in_order, sparse_with_unlabeled
from keras_robust.layers.wnll_template import WNLLTemplate
from keras_robust.model.arrays import as_array, batches

# Of a data set no more examples are read, if these are enough.
_MOST_READ = 100_000


def draw_rows(template: WNLLTemplate, y: Any) -> tuple[np.ndarray, np.ndarray]:
    """The rows that `adapt_template` takes of arrays, and their labels.

    Raises:
        ValueError: if the labels make no template.
    """
    labels = _integers(template, y)
    template.check_labels(labels)
    rows = template.chosen(labels, seed=0)
    return rows, labels[rows]


def draw_from_data_set(
    template: WNLLTemplate, x: Any, steps: int | None
) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels drawn by the rule of `adapt_template`, while a data set is read once.

    No more images are held than twice those that are drawn, and a batch.

    Raises:
        ValueError: if the labels make no template.
    """
    generator = np.random.default_rng(0)
    size, unlabeled_size = template.size, template.unlabeled_size
    pool: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    num_held = num_read = num_labeled = 0
    classes: set[int] = set()

    def reduced() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Those of the pool that are in front in the order of their random keys."""
        images, labels, keys = (np.concatenate(part) for part in zip(*pool, strict=True))
        order = np.argsort(keys)
        is_labeled = labels[order] >= 0
        labeled = first_in_order(labels, order[is_labeled], size)
        rows = np.concatenate([labeled, order[~is_labeled][:unlabeled_size]])
        return images[rows], labels[rows], keys[rows]

    for batch, y in batches(x, steps):
        # Of pairs, the first.
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


def _integers(template: WNLLTemplate, y: Any) -> np.ndarray:
    """Labels as integers, also where these are held as floats, as training takes them."""
    labels = sparse_with_unlabeled(as_array(y, "y"), template.num_classes)
    is_whole = labels.dtype.kind == "f" and (labels == np.round(labels)).all()
    return labels.astype("int32") if is_whole else labels
