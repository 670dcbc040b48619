"""The images of a data set that need not fit into memory."""

import hashlib
import itertools
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

Pair = tuple[np.ndarray, np.ndarray]
# Batches of a data set that are looked at twice before it is relied on.
_NUM_COMPARED = 8


class Images:
    """The images of a data set, indexed as one array of them; one batch at a time is in memory.

    The data set is read from end to end when this is made, and again as images are asked for: once
    by whoever asks for them in their order.

    Args:
        read: function of a number n that yields the data set's batches from the n-th on, pairs of
            arrays of images and labels.
        in_order: bool. Whether `read(n)` has to read what comes before the n-th batch too.

    Attributes:
        labels: array, those of all images.
        shape, dtype: those of one array of all images.
        content: string, a hash of that array's bytes.

    Raises:
        ValueError: if there are none, or they have several sizes; when indexed, if a batch is not
            what it was.
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
            del images  # Not two batches at a time.
        if not labels:
            raise ValueError(
                "A data set passed as `x` must hold at least one pair of images and labels. "
                "Received: an empty one"
            )
        check_one_size(sizes)
        self.labels = np.concatenate(labels)
        self.content, self.dtype = content.hexdigest(), np.result_type(*dtypes)
        self._lowest, self._highest = lowest, highest
        self._ends, self._checksums = np.cumsum(lengths), np.array(checksums, "uint32")
        self.shape = (int(self._ends[-1]), *sizes.pop())
        # The batch that was read last, and those that follow it.
        self._number, self._batch = -1, np.empty(0)
        self._following: Iterator[Pair] = read(0)

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        return int(np.prod(self.shape))

    def min(self, axis: int | None = None) -> Any:
        """The smallest value; for an `axis` of 0, of all images at each place."""
        return float(self._lowest.min()) if axis is None else self._lowest

    def max(self, axis: int | None = None) -> Any:
        """The largest value; for an `axis` of 0, of all images at each place."""
        return float(self._highest.max()) if axis is None else self._highest

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> np.ndarray:
        """One image, or an array of some, as of an array of all."""
        indices = np.arange(len(self))[index]
        rows = np.atleast_1d(indices)
        found = np.empty((len(rows), *self.shape[1:]), self.dtype)
        numbers = np.searchsorted(self._ends, rows, side="right")
        for number in np.unique(numbers):
            places = np.flatnonzero(numbers == number)
            # Counted from the end, since the batch ends where it does among all images.
            found[places] = self._batch_of(number)[rows[places] - self._ends[number]]
        return found if np.ndim(indices) else found[0]

    def is_steady(self) -> bool:
        """Whether the first batches are still what they were."""
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
                "that it is read. Leave out what draws random numbers, such as `shuffle`, or pass "
                f"arrays. Received: one whose batch {number} has changed"
            )
        self._number, self._batch = number, images
        return images


def as_bytes(array: np.ndarray) -> memoryview:
    """The bytes of an array, in its order."""
    return np.ascontiguousarray(array).reshape(-1).view("uint8").data


def content_of(images: np.ndarray | Images) -> str:
    """A hash of the bytes of an array, or of what `Images` stand for."""
    if isinstance(images, Images):
        return images.content
    return hashlib.sha256(as_bytes(images)).hexdigest()


def check_one_size(sizes: Iterable[tuple[int, ...]]) -> None:
    """Raises a `ValueError` for images of several sizes."""
    found = sorted(set(sizes))
    if len(found) > 1:
        raise ValueError(
            "A data set passed as `x` must hold images of one size: bring them to one with `map`. "
            f"Received: images of shapes {', '.join(map(str, found[:3]))}"
        )


def _checksum(images: np.ndarray) -> int:
    return zlib.crc32(as_bytes(images))
