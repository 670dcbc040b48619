"""Reading of the images and labels for the command."""

import argparse
import pathlib
import warnings
import zipfile
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

from keras_robust.attacks.inputs import as_mask
from keras_robust.datasets.folder import first_damaged, load_folder
from keras_robust.datasets.load import load
from keras_robust.model.arrays import as_images
from keras_robust.model.checks import sparse
from keras_robust.model.images import LazyImages
from keras_robust.training import RobustModel
from keras_robust.types import Images, Labels, Model

_SPLIT = "test"
# Size of images for models that accept any size. It is Keras's default.
_SIDE = 256
_BATCH_SIZE = 32


class Data(NamedTuple):
    """The data for an evaluation.

    Args:
        x: images, in the range that the model expects.
        y: labels of the images.
        class_names: list of strings, or `None` if the data have no class names.
        description: string, where the data come from.
    """

    x: np.ndarray | LazyImages
    y: np.ndarray
    class_names: list[str] | None
    description: str


def check_data(options: argparse.Namespace) -> None:
    """Raises a `ValueError` if an option does not belong to the given kind of data."""
    for name in ("split", "data_dir"):
        if options.data is not None and getattr(options, name) is not None:
            raise ValueError(f"--{name.replace('_', '-')} is for a --dataset, not for --data")


def load_data(options: argparse.Namespace, model: Model) -> Data:
    """Returns the images, scaled to the bounds, and the labels."""
    is_own = options.data is not None
    try:
        if not is_own:
            return _from_data_set(options)
        if pathlib.Path(options.data).is_dir():
            return _from_folder(options, model)
        return _from_file(options)
    except Exception as error:  # Downloads and damaged files raise errors of many types.
        source = f"--data {options.data}" if is_own else f"--dataset {options.dataset}"
        raise ValueError(f"{source}: {error}") from error


def load_mask(options: argparse.Namespace, shape: tuple[int, ...]) -> np.ndarray | None:
    """Returns the mask for images of the given shape; `None` without a mask."""
    if options.mask is None:
        return None
    try:
        mask = _read_mask(options.mask)
        if mask.ndim == len(shape):  # One mask per example, of which the first N are used.
            mask = mask[: shape[0]]
        return as_mask(mask, shape)
    except Exception as error:  # Damaged files raise errors of many types.
        raise ValueError(f"--mask {options.mask}: {error}") from error


def _read_mask(path: str) -> np.ndarray:
    found = np.load(path, allow_pickle=False)
    if isinstance(found, np.ndarray):
        return found
    with found:
        if len(found.files) != 1:
            names = ", ".join(found.files) or "none"
            raise ValueError(f"it must hold one array. Received: {names}")
        return found[found.files[0]]


def _from_data_set(options: argparse.Namespace) -> Data:
    low, high = options.bounds
    split = options.split or _SPLIT

    def scaled(image: Images, label: Labels) -> tuple[Any, Any]:
        return ops.clip(low + (high - low) * image, low, high), label

    data = load(options.dataset, split, options.data_dir)
    if options.num_examples is not None:
        data = data.take(options.num_examples)
    x, y = as_images(data.map(scaled))
    description = f"{options.dataset}, {split}, the first {len(x)} examples, {_to_bounds(options)}"
    return Data(x, y, None, description)


def _from_file(options: argparse.Namespace) -> Data:
    path = pathlib.Path(options.data)
    if not path.exists():
        raise ValueError("there is no such file or folder")
    if not zipfile.is_zipfile(path):
        raise ValueError("it is not a complete .npz file, which numpy.savez writes")
    with np.load(path, allow_pickle=False) as file:
        if not {"x", "y"} <= set(file.files):
            found = ", ".join(file.files) or "none"
            raise ValueError(f"it must hold the arrays x and y. Received: {found}")
        x, y = file["x"], file["y"]
    if x.ndim < 2 or y.ndim not in (1, 2) or len(x) != len(y) or not x.size:
        raise ValueError(
            "x must have the shape (num_examples, ...) and y the shape (num_examples,), or "
            "(num_examples, num_classes) if it is one-hot, with at least one example. "
            f"Received: x.shape={x.shape}, y.shape={y.shape}"
        )
    x, how = _in_range(x, options)
    taken = slice(options.num_examples)
    _warn_of_classes(options, sparse(y[taken]), len(set(sparse(y).tolist())))
    x, y = x[taken], y[taken]
    return Data(x, y, None, f"{path}, the first {len(x)} examples, {how}")


def _in_range(x: np.ndarray, options: argparse.Namespace) -> tuple[np.ndarray, str]:
    """Returns the images in the range that the model expects, and how they were scaled."""
    low, high = options.bounds
    if x.dtype.kind not in "iuf":
        raise ValueError(f"x must hold numbers. Received: x.dtype={x.dtype}")
    least, most = x.min(), x.max()
    if x.dtype.kind in "iu" and least >= 0 and most <= 255:
        x = x.astype("float32") / np.float32(255)
    elif x.dtype.kind == "f" and least >= 0 and most <= 1:
        x = x.astype("float32")
    elif x.dtype.kind == "f" and least >= low and most <= high:
        return x.astype("float32"), f"already from {low:g} to {high:g}"
    else:
        raise ValueError(
            "x must hold integers from 0 to 255 or floating values from 0 to 1, which are scaled "
            "to the --bounds, or floating values that are already within the --bounds. Received: "
            f"{x.dtype} from {least} to {most}, --bounds {low:g} {high:g}"
        )
    return np.clip(low + (high - low) * x, low, high), _to_bounds(options)


def _from_folder(options: argparse.Namespace, model: Model) -> Data:
    folder = pathlib.Path(options.data)
    names = sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    if not names:
        raise ValueError("it must hold a folder of images for each class, but it holds no folders")
    size, channels = _image_shape(model)
    _check_classes(model, names)
    data, class_names, files = load_folder(str(folder), size, channels, options.bounds)
    if options.num_examples is not None:
        data = data.take(options.num_examples)
    try:
        x, y = as_images(data.batch(_BATCH_SIZE))
    except Exception as error:  # TensorFlow's error does not name the file.
        damaged = first_damaged(files)
        if damaged is None:
            raise
        raise ValueError(f"{damaged!r} is not a complete image") from error
    _warn_of_classes(options, y, len(class_names))
    return Data(
        x,
        y,
        class_names,
        f"{folder}, the first {len(x)} examples, as {size[0]} x {size[1]} pixels, "
        f"{_to_bounds(options)}",
    )


def _image_shape(model: Model) -> tuple[tuple[int, int], int]:
    """Returns the height and width of a model's images, and the number of channels."""
    shape = getattr(_classifier(model), "input_shape", None)
    sides = list(shape[1:]) if isinstance(shape, tuple) else []
    if len(sides) == 2:  # Keras itself removes a last axis of length 1.
        sides.append(1)
    if len(sides) == 3 and keras.config.image_data_format() == "channels_first":
        sides = [*sides[1:], sides[0]]
    if len(sides) != 3 or sides[2] is None:
        raise ValueError(
            "a folder of images needs a model whose inputs have a height, a width and a number of "
            f"channels, and this one takes {shape and shape[1:]}: save arrays x and y with "
            "numpy.savez, and pass that file"
        )
    return (sides[0] or _SIDE, sides[1] or _SIDE), sides[2]


def _check_classes(model: Model, names: list[str]) -> None:
    """Raises a `ValueError` unless there is a folder for each class of the model.

    A missing folder would change the numbers of the classes after it.
    """
    shape = getattr(_classifier(model), "output_shape", None)
    if not isinstance(shape, tuple) or not isinstance(shape[-1], int):
        return
    num_classes = max(2, shape[-1])
    if len(names) != num_classes:
        raise ValueError(
            f"it must hold a folder for each of the model's {num_classes} classes. Sorted by name, "
            "they must be in the order of the model's outputs. A folder may be empty. "
            f"Received: {len(names)} folders"
        )


def _classifier(model: Model) -> Any:
    return model.base_model if isinstance(model, RobustModel) else model


def _warn_of_classes(options: argparse.Namespace, labels: np.ndarray, num_classes: int) -> None:
    found = len(set(labels.tolist()))
    if options.num_examples is not None and found < num_classes:
        warnings.warn(
            f"--num-examples {options.num_examples} takes the first examples of --data "
            f"{options.data}, which cover only {found} of {num_classes} classes",
            stacklevel=2,
        )


def _to_bounds(options: argparse.Namespace) -> str:
    return f"scaled to {options.bounds[0]:g} to {options.bounds[1]:g}"
