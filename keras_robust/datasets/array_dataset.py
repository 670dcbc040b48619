"""An in-memory data set that does not need TensorFlow."""

import copy
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np

from keras_robust import validation
from keras_robust.types import Images, Labels

# Maps the number of the epoch and the index of an element to the element's arrays.
_Element = Callable[[int, int], tuple[Any, ...]]


class ArrayDataset(keras.utils.PyDataset):
    """Holds images and labels in memory, with the methods of `tf.data` that training needs.

    `batch`, `shuffle`, `take`, `skip` and `map` each return a new data set and compute nothing
    until it is read. For `fit`, the data set must be batched. As for every `PyDataset`, `fit` reads
    the batches in random order unless it is called with `shuffle=False`. The functions of this
    package accept the data set batched or not.

    Args:
        images: array, shape `(num_examples, ...)`.
        labels: array, shape `(num_examples, ...)`.

    Raises:
        ValueError: if `images` is empty or differs in length from `labels`, or an argument of a
            method is out of its range.

    Example:

    >>> import numpy as np, keras_robust as kr
    >>> images, labels = np.zeros((10, 8, 8, 1), "float32"), np.arange(10)
    >>> train = kr.datasets.ArrayDataset(images, labels).shuffle(seed=0).batch(4)
    >>> [len(y) for x, y in train]
    [4, 4, 2]
    """

    def __init__(self, images: Images, labels: Labels) -> None:
        super().__init__()
        images, labels = np.asarray(images), np.asarray(labels)
        if not len(images) or len(images) != len(labels):
            raise ValueError(
                "Arguments `images` and `labels` must have the same number of examples, at least "
                f"one. Received: {len(images)} images, {len(labels)} labels"
            )
        self._length = len(images)
        self._element: _Element = lambda epoch, number: (images[number], labels[number])
        self._epoch = 0
        self.is_batched = False

    def batch(self, batch_size: int, drop_remainder: bool = False) -> "ArrayDataset":
        """Combines elements into batches. A smaller last batch is kept, or dropped on request."""
        batch_size = validation.check_count("batch_size", batch_size)
        if self.is_batched:
            raise ValueError("A data set can be batched only once. Received: a batched data set")
        length, element = self._length, self._element

        def batch(epoch: int, number: int) -> tuple[Any, ...]:
            begin = number * batch_size
            rows = range(begin, min(begin + batch_size, length))
            parts = zip(*(element(epoch, row) for row in rows), strict=True)
            return tuple(np.stack(part) for part in parts)

        count = length // batch_size if drop_remainder else -(-length // batch_size)
        batches = self._with(count, batch)
        batches.is_batched = True
        return batches

    def shuffle(self, buffer_size: int | None = None, seed: int | None = None) -> "ArrayDataset":
        """Shuffles the elements, in a different order in each epoch of `fit`.

        Args:
            buffer_size: int. Accepted for compatibility with `tf.data` and ignored: all elements
                are shuffled.
            seed: int. Defaults to `None`: drawn from NumPy's global random state.
        """
        if seed is None:
            seed = int(np.random.randint(2**31))
        length, element = self._length, self._element
        orders: dict[int, np.ndarray] = {}

        def shuffled(epoch: int, number: int) -> tuple[Any, ...]:
            if epoch not in orders:
                orders.clear()
                orders[epoch] = np.random.default_rng([seed, epoch]).permutation(length)
            return element(epoch, int(orders[epoch][number]))

        return self._with(length, shuffled)

    def take(self, count: int) -> "ArrayDataset":
        """Keeps the first `count` elements, or all if there are fewer."""
        count = validation.check_count("count", count, minimum=0)
        return self._with(min(count, self._length), self._element)

    def skip(self, count: int) -> "ArrayDataset":
        """Skips the first `count` elements."""
        count = validation.check_count("count", count, minimum=0)
        element = self._element
        return self._with(
            max(0, self._length - count), lambda epoch, number: element(epoch, number + count)
        )

    def map(self, function: Callable[..., tuple[Any, Any]]) -> "ArrayDataset":
        """Applies `function(images, labels)`, which returns a pair of arrays, to each element."""
        element = self._element

        def mapped(epoch: int, number: int) -> tuple[Any, ...]:
            found = function(*element(epoch, number))
            if not isinstance(found, tuple | list) or len(found) != 2:
                raise ValueError(
                    "Argument `function` must return a pair of images and labels. "
                    f"Received: a {type(found).__name__}"
                )
            return tuple(np.asarray(part) for part in found)

        return self._with(self._length, mapped)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, number: int) -> tuple[Any, ...]:
        if not 0 <= number < self._length:
            raise IndexError(f"The data set has {self._length} elements. Received: index {number}")
        return self._element(self._epoch, number)

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        return (self[number] for number in range(self._length))

    def as_numpy_iterator(self) -> Iterator[tuple[Any, ...]]:
        """Returns an iterator over the elements as arrays, as in `tf.data`."""
        return iter(self)

    def on_epoch_end(self) -> None:
        self._epoch += 1

    def _with(self, length: int, element: _Element) -> "ArrayDataset":
        other = copy.copy(self)
        other._length, other._element, other._epoch = length, element, 0
        return other
