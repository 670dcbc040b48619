"""Images of a data set that need not fit into memory."""

import hashlib
import itertools
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

Pair = tuple[np.ndarray, np.ndarray]
# Number of batches that `is_steady` reads again.
_NUM_COMPARED = 8


class LazyImages:
    """Indexes the images of a data set as one array, with one batch in memory at a time.

    The data set is read completely when this object is created, and again when images are indexed.
    Indexing them in order reads it only once more.

    Args:
        read: function that maps an int n to an iterator over the data set's batches, starting at
            batch n. Each batch is a pair of arrays, `(images, labels)`.
        in_order: bool. Whether `read(n)` has to read the first n batches too.

    Attributes:
        labels: array of the labels of all images.
        shape, dtype: shape and dtype of the array of all images.
        content: string, a hash of that array's bytes.

    Raises:
        ValueError: if there are no images, or images of several sizes; when indexed, if a batch has
            changed.
    """

    def __init__(self, read: Callable[[int], Iterator[Pair]], in_order: bool) -> None:
        self._read, self._in_order = read, in_order
        labels, lengths, checksums = [], [], []
        sizes, dtypes = set(), set()
        lowest, highest = np.asarray(np.inf), np.asarray(-np.inf)
        content = hashlib.sha256()
        for images, y in read(0):
            labels.append(y)
            lengths.append(len(images))
            checksums.append(_checksum(images))
            sizes.add(images.shape[1:])
            dtypes.add(images.dtype)
            if images.size and len(sizes) == 1:
                lowest = np.minimum(lowest, images.min(axis=0))
                highest = np.maximum(highest, images.max(axis=0))
            content.update(as_bytes(images))
            del images  # Otherwise two batches would be in memory at a time.
        if not labels:
            raise ValueError(
                "A data set passed as `x` must hold at least one pair of images and labels. "
                "Received: an empty data set"
            )
        check_one_size(sizes)
        self.labels = np.concatenate(labels)
        self.content, self.dtype = content.hexdigest(), np.result_type(*dtypes)
        self._lowest, self._highest = lowest, highest
        self._ends, self._checksums = np.cumsum(lengths), np.array(checksums, "uint32")
        self.shape = (int(self._ends[-1]), *sizes.pop())
        # The last batch that was read, its number, and the batches that follow it.
        self._number, self._batch = -1, np.empty(0)
        self._following: Iterator[Pair] = read(0)

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        return int(np.prod(self.shape))

    def min(self, axis: int | None = None) -> Any:
        """Returns the smallest value of all images; with `axis=0`, that at each position."""
        return float(self._lowest.min()) if axis is None else self._lowest

    def max(self, axis: int | None = None) -> Any:
        """Returns the largest value of all images; with `axis=0`, that at each position."""
        return float(self._highest.max()) if axis is None else self._highest

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> np.ndarray:
        """Returns one image or an array of images, as an array of all images would."""
        indices = np.arange(len(self))[index]
        rows = np.atleast_1d(indices)
        found = np.empty((len(rows), *self.shape[1:]), self.dtype)
        numbers = np.searchsorted(self._ends, rows, side="right")
        for number in np.unique(numbers):
            places = np.flatnonzero(numbers == number)
            # The positions are negative: they count from the end of the batch.
            found[places] = self._batch_of(number)[rows[places] - self._ends[number]]
        return found if np.ndim(indices) else found[0]

    def is_steady(self) -> bool:
        """Returns whether the first batches are the same when they are read again."""
        try:
            for number in range(min(_NUM_COMPARED, len(self._ends))):
                self._batch_of(number)
        except ValueError:
            return False
        return True

    def _batch_of(self, number: int) -> np.ndarray:
        if number == self._number:
            return self._batch
        num_skipped = number - self._number - 1
        if num_skipped < 0 or not self._in_order:
            self._following, num_skipped = self._read(number), 0
        self._batch = np.empty(0)
        images, _ = next(itertools.islice(self._following, num_skipped, None), (self._batch, None))
        if _checksum(images) != self._checksums[number]:
            raise ValueError(
                "A data set passed as `x` must hold the same images in the same order each time "
                "it is read. Remove random operations, such as `shuffle`, or pass arrays. "
                f"Received: a data set whose batch {number} has changed"
            )
        self._number, self._batch = number, images
        return images


def as_bytes(array: np.ndarray) -> memoryview:
    """Returns the bytes of an array in row-major order."""
    return np.ascontiguousarray(array).reshape(-1).view("uint8").data


def content_of(images: np.ndarray | LazyImages) -> str:
    """Returns a hash of the bytes of an array of images, or of `LazyImages`."""
    if isinstance(images, LazyImages):
        return images.content
    return hashlib.sha256(as_bytes(images)).hexdigest()


def check_one_size(sizes: Iterable[tuple[int, ...]]) -> None:
    """Raises a `ValueError` if images have several sizes."""
    found = sorted(set(sizes))
    if len(found) > 1:
        raise ValueError(
            "A data set passed as `x` must hold images of one size: resize them with `map`. "
            f"Received: images of shapes {', '.join(map(str, found[:3]))}"
        )


def _checksum(images: np.ndarray) -> int:
    return zlib.crc32(as_bytes(images))
