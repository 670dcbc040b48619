"""A data set in memory that needs no TensorFlow."""

import copy
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np

from keras_robust import validation

# An element's arrays, by the number of the epoch and its own number.
_Element = Callable[[int, int], tuple[Any, ...]]


class ArrayDataset(keras.utils.PyDataset):
    """Images and labels in memory, with the methods of `tf.data` that training needs.

    `batch`, `shuffle`, `take`, `skip` and `map` each return another data set, and compute nothing
    before it is read. `fit` takes it once it has been batched, and reads the batches in random
    order unless it is called with `shuffle=False`, as it does every `PyDataset`; the library's own
    functions take it as it is.

    Args:
        images: array, shape `(num_examples, ...)`.
        labels: array, shape `(num_examples, ...)`.

    Raises:
        ValueError: if there is not one label for each of at least one image, or an argument of a
            method is out of its range.

    Example:

    >>> import numpy as np, keras_robust as kr
    >>> images, labels = np.zeros((10, 8, 8, 1), "float32"), np.arange(10)
    >>> train = kr.datasets.ArrayDataset(images, labels).shuffle(seed=0).batch(4)
    >>> [len(y) for x, y in train]
    [4, 4, 2]
    """

    def __init__(self, images: Any, labels: Any) -> None:
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
        """Batches of `batch_size` elements; what is left over is one too, or dropped."""
        batch_size = validation.check_count("batch_size", batch_size)
        if self.is_batched:
            raise ValueError("A data set is batched once. Received: one of batches")
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
        """The elements in random order, another one in each epoch of `fit`.

        Args:
            buffer_size: for likeness to `tf.data`: all elements are shuffled, whatever it is.
            seed: int. Defaults to `None`: drawn from NumPy's random numbers.
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
        """The first `count` elements, or all where there are fewer."""
        count = validation.check_count("count", count, minimum=0)
        return self._with(min(count, self._length), self._element)

    def skip(self, count: int) -> "ArrayDataset":
        """All elements but the first `count`."""
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
            raise IndexError(f"There are {self._length} elements. Received: number {number}")
        return self._element(self._epoch, number)

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        return (self[number] for number in range(self._length))

    def as_numpy_iterator(self) -> Iterator[tuple[Any, ...]]:
        """The elements one after another, as arrays: what `tf.data` calls by this name."""
        return iter(self)

    def on_epoch_end(self) -> None:
        self._epoch += 1

    def _with(self, length: int, element: _Element) -> "ArrayDataset":
        other = copy.copy(self)
        other._length, other._element, other._epoch = length, element, 0
        return other
