"""Conversion of data of any kind to arrays, and checks of images and labels."""

import contextlib
import functools
import itertools
import sys
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_robust import validation
from keras_robust.datasets import ArrayDataset
from keras_robust.model.images import LazyImages, Pair, check_one_size
from keras_robust.types import Images, Labels


def as_arrays(
    x: Images, y: Labels = None, steps: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Converts images and labels to arrays, from anything that Keras's `fit` accepts.

    Args:
        x: array or tensor of images; or a data set of `(images, labels)`: a `tf.data.Dataset` or
            `kr.datasets.ArrayDataset` (batched or not), a `keras.utils.PyDataset`, a torch
            `DataLoader` or a generator.
        y: labels, if `x` is an array or a tensor.
        steps: int. Number of batches to read. Required for a generator and for a data set that
            repeats forever. Defaults to `None`: all batches.

    Returns:
        The images and the labels.
    """
    if not is_data_set(x):
        if y is None:
            raise ValueError("Argument `y` must be given where `x` is an array. Received: y=None")
        return as_array(x), as_array(y, "y")
    if y is not None:
        raise ValueError(
            "Argument `y` must be None where `x` is a data set: it holds the labels. "
            f"Received: y of type {type(y).__name__}"
        )
    pairs = [_pair(element, x) for element in _elements(x, steps)]
    if not pairs:
        raise ValueError(
            "A data set passed as `x` must hold at least one pair of images and labels every time "
            f"it is read. Received: x={x}"
        )
    is_batched = _is_batched(x, *pairs[0])
    check_one_size(images.shape[1:] if is_batched else images.shape for images, _ in pairs)
    join = np.concatenate if is_batched else np.stack
    return join([pair[0] for pair in pairs]), join([pair[1] for pair in pairs])


def as_images(
    x: Images, y: Labels = None, steps: int | None = None
) -> tuple[np.ndarray | LazyImages, np.ndarray]:
    """Converts images and labels like `as_arrays`, but reads repeatable data sets lazily.

    A data set that holds the same images each time it is read is returned as `LazyImages`, which
    hold one batch at a time in memory.
    """
    if isinstance(x, LazyImages):
        return x, as_array(y, "y")
    if y is None and is_data_set(x) and can_be_read_again(x, steps):
        read = functools.partial(_read, x, steps)
        images = LazyImages(read, in_order=not isinstance(x, keras.utils.PyDataset))
        if images.is_steady():
            return images, images.labels
    return as_arrays(x, y, steps)


def is_data_set(x: Images) -> bool:
    """Returns whether `x` holds its own labels: it is no array or structure of arrays."""
    is_plain = isinstance(x, np.ndarray | list | tuple | Mapping) or hasattr(x, "__array__")
    return not is_plain and (hasattr(x, "__iter__") or isinstance(x, keras.utils.PyDataset))


def as_array(value: Any, name: str = "x") -> np.ndarray:
    """Converts a value to one array. It may be a list or a dict that holds one array."""
    return ops.convert_to_numpy(single(value, name))


def single(value: Any, name: str = "x") -> Any:
    """Returns the one array in a list, tuple or dict. An array is returned as it is.

    Raises:
        ValueError: if there are several arrays.
    """
    if isinstance(value, Mapping) or (
        isinstance(value, list | tuple) and any(len(getattr(v, "shape", ())) > 0 for v in value)
    ):
        parts = list(value.values()) if isinstance(value, Mapping) else list(value)
        if len(parts) != 1:
            raise ValueError(
                f"Argument `{name}` must be one array or tensor: models with several inputs or "
                "outputs cannot be attacked. Make a model with one input and one output, as in "
                '`keras.Model(m.input, m.output["logits"])`. '
                f"Received: {name} with {len(parts)} parts"
            )
        return parts[0]
    return value


def first_batch(x: Images, y: Labels = None) -> tuple[Any, Any, Any]:
    """Returns the images and labels of the first batch, and `x` rewound to its start.

    An array is returned in full. Images and labels are `None` if they cannot be read here.
    """
    if not is_data_set(x):
        return x, y, x
    again = x
    if isinstance(x, Iterator):
        first = next(x, None)
        # A generator, because Keras accepts no other iterators.
        again = (element for element in itertools.chain([] if first is None else [first], x))
    elif isinstance(x, keras.utils.PyDataset):
        first = None if x.num_batches == 0 else x[0]
    elif hasattr(x, "take"):
        first = next(iter(x.take(1)), None)
    elif hasattr(x, "element_spec"):  # A distributed data set: each device has its own part.
        return None, None, x
    else:
        with _torch_random_state_restored():
            first = next(iter(x), None)
    if first is None:
        raise ValueError("Argument `x` must not be empty. Received: an empty data set")
    return *_images_and_labels(first), again


def can_be_read_again(x: Images, steps: int | None = None) -> bool:
    """Returns whether `batches` can read a data set repeatedly, each time to an end."""
    is_distributed = hasattr(x, "element_spec") and not hasattr(x, "take")
    if isinstance(x, Iterator) or is_distributed:
        return False
    return steps is not None or not _is_endless(x)


def batches(x: Images, steps: int | None = None) -> Iterator[tuple[Any, Any]]:
    """Yields the images and labels of each batch of a data set that `fit` accepts.

    Args:
        x: data set for which `can_be_read_again` is true.
        steps: int. Largest number of batches to read. Defaults to `None`: all batches.
    """
    if isinstance(x, keras.utils.PyDataset) and steps is not None and x.num_batches is not None:
        steps = min(steps, x.num_batches)
    with _torch_random_state_restored():
        for element in _elements(x, steps):
            yield _images_and_labels(element)


def _images_and_labels(element: Any) -> tuple[Any, Any]:
    """Returns the images and labels in an element of a data set, as `fit` reads it."""
    return keras.utils.unpack_x_y_sample_weight(
        tuple(element) if isinstance(element, list) else element
    )[:2]


def _elements(x: Images, steps: int | None, first: int = 0) -> Iterator[Any]:
    """Returns an iterator over elements `first` to `steps` of a data set."""
    if steps is not None:
        steps = validation.check_count("steps", steps)
    elif _is_endless(x):
        raise ValueError(_endless_message(x))
    if isinstance(x, keras.utils.PyDataset):
        return map(x.__getitem__, range(first, x.num_batches if steps is None else steps))
    # `take` keeps a `tf.data.Dataset` from reading ahead.
    source = x.take(-1 if steps is None else steps) if hasattr(x, "take") else x
    return itertools.islice(iter(source), first, steps)


def _read(x: Images, steps: int | None, first: int) -> Iterator[Pair]:
    """Returns an iterator over the batches of a data set, starting at batch `first`.

    In a data set of single examples, each example becomes a batch of one.
    """

    def batch(element: Any) -> Pair:
        images, labels = _pair(element, x)
        return (images, labels) if _is_batched(x, images, labels) else (images[None], labels[None])

    # A generator would hold each batch in memory while the next one is read; `map` does not.
    return map(batch, _elements(x, steps, first))


def _is_endless(x: Images) -> bool:
    """Returns whether a data set repeats forever, or may do so, as a generator may."""
    if isinstance(x, keras.utils.PyDataset):
        return x.num_batches is None
    return isinstance(x, Iterator) or (hasattr(x, "cardinality") and int(x.cardinality()) == -1)


def _endless_message(x: Images) -> str:
    return (
        "A data set without an end needs `steps`, the number of batches to read. Pass `steps`, or "
        f"a data set that ends. Received: x={x!r}, steps=None"
    )


def _pair(element: Any, x: Images) -> Pair:
    if not isinstance(element, list | tuple) or len(element) < 2:
        raise ValueError(
            "A data set passed as `x` must hold at least one pair of images and labels. "
            f"Received: x={x}, which holds elements of type {type(element).__name__}"
        )
    return as_array(element[0]), as_array(element[1], "y")


def _is_batched(x: Images, images: np.ndarray, labels: np.ndarray) -> bool:
    """Returns whether an element is a batch, rather than one image and its label."""
    if isinstance(x, ArrayDataset):
        return x.is_batched
    if not hasattr(x, "element_spec"):
        return True
    if images.ndim == 0 or labels.ndim == 0 or len(images) != len(labels):
        return False
    # A single image with a one-hot label looks like a batch if it has as many rows as there are
    # classes.
    may_be_one_image = images.ndim == 3 and labels.ndim == 1 and labels.dtype.kind == "f"
    return not (may_be_one_image and keras.tree.flatten(x.element_spec)[0].shape[0] is not None)


def _torch_random_state_restored() -> AbstractContextManager[Any]:
    """Restores torch's random state on exit.

    A torch `DataLoader` draws the order of its examples from it.
    """
    torch = sys.modules.get("torch")
    return contextlib.nullcontext() if torch is None else torch.random.fork_rng(devices=[])
