"""The images and labels that the command reads."""

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
from keras_robust.model.arrays import as_images, sparse
from keras_robust.model.images import Images
from keras_robust.training import RobustModel

_SPLIT = "test"
# Images are resized to this where the model takes any size: Keras's own default.
_SIDE = 256
_BATCH_SIZE = 32


class Data(NamedTuple):
    """What the model is evaluated on.

    Args:
        x: images, in the range that the model takes.
        y: their labels.
        class_names: list of strings; `None` where the data have none.
        description: string, where they are from.
    """

    x: np.ndarray | Images
    y: np.ndarray
    class_names: list[str] | None
    description: str


def check_data(options: argparse.Namespace) -> None:
    """Raises a `ValueError` for options that are not for the data that were chosen."""
    for name in ("split", "data_dir"):
        if options.data is not None and getattr(options, name) is not None:
            raise ValueError(f"--{name.replace('_', '-')} is for a --dataset, not for --data")


def load_data(options: argparse.Namespace, model: Any) -> Data:
    """Images, scaled to the bounds, and labels."""
    is_own = options.data is not None
    try:
        if not is_own:
            return _of_data_set(options)
        if pathlib.Path(options.data).is_dir():
            return _in_folder(options, model)
        return _in_file(options)
    except Exception as error:  # downloads, and damaged files, fail in many ways
        source = f"--data {options.data}" if is_own else f"--dataset {options.dataset}"
        raise ValueError(f"{source}: {error}") from error


def load_mask(options: argparse.Namespace, shape: tuple[int, ...]) -> np.ndarray | None:
    """The mask for images of that shape; `None` without one."""
    if options.mask is None:
        return None
    try:
        mask = _mask_in(options.mask)
        if mask.ndim == len(shape):  # One for each example, of which the first are taken.
            mask = mask[: shape[0]]
        return as_mask(mask, shape)
    except Exception as error:  # damaged files fail in many ways
        raise ValueError(f"--mask {options.mask}: {error}") from error


def _mask_in(path: str) -> np.ndarray:
    found = np.load(path, allow_pickle=False)
    if isinstance(found, np.ndarray):
        return found
    with found:
        if len(found.files) != 1:
            names = ", ".join(found.files) or "none"
            raise ValueError(f"it must hold one array. Received: {names}")
        return found[found.files[0]]


def _of_data_set(options: argparse.Namespace) -> Data:
    low, high = options.bounds
    split = options.split or _SPLIT

    def scaled(image: Any, label: Any) -> tuple[Any, Any]:
        return ops.clip(low + (high - low) * image, low, high), label

    data = load(options.dataset, split, options.data_dir)
    if options.num_examples is not None:
        data = data.take(options.num_examples)
    x, y = as_images(data.map(scaled))
    description = f"{options.dataset}, {split}, the first {len(x)} examples, {_to_bounds(options)}"
    return Data(x, y, None, description)


def _in_file(options: argparse.Namespace) -> Data:
    path = pathlib.Path(options.data)
    if not path.exists():
        raise ValueError("there is no such file or folder")
    if not zipfile.is_zipfile(path):
        raise ValueError("it is no .npz file, as numpy.savez writes it, or not a whole one")
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
    """The images in the range that the model takes, and what was done with them, in words."""
    low, high = options.bounds
    if x.dtype.kind not in "iuf":
        raise ValueError(f"x must hold numbers. Received: x.dtype={x.dtype}")
    least, most = x.min(), x.max()
    if x.dtype.kind in "iu" and least >= 0 and most <= 255:
        x = x.astype("float32") / np.float32(255)
    elif x.dtype.kind == "f" and least >= 0 and most <= 1:
        x = x.astype("float32")
    elif x.dtype.kind == "f" and least >= low and most <= high:
        return x.astype("float32"), f"which are in {low:g} to {high:g} already"
    else:
        raise ValueError(
            "x must hold integers from 0 to 255 or floating values from 0 to 1, which are scaled "
            "to the --bounds, or floating values that lie inside of these already. Received: "
            f"{x.dtype} from {least} to {most}, --bounds {low:g} {high:g}"
        )
    return np.clip(low + (high - low) * x, low, high), _to_bounds(options)


def _in_folder(options: argparse.Namespace, model: Any) -> Data:
    folder = pathlib.Path(options.data)
    names = sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    if not names:
        raise ValueError("it must hold a folder of images for each class, and holds no folder")
    size, channels = _images_of(model)
    _check_classes(model, names)
    data, class_names, files = load_folder(str(folder), size, channels, options.bounds)
    if options.num_examples is not None:
        data = data.take(options.num_examples)
    try:
        x, y = as_images(data.batch(_BATCH_SIZE))
    except Exception as error:  # TensorFlow's says nothing of the file
        damaged = first_damaged(files)
        if damaged is None:
            raise
        raise ValueError(f"{damaged!r} is no image, or not a whole one") from error
    _warn_of_classes(options, y, len(class_names))
    return Data(
        x,
        y,
        class_names,
        f"{folder}, the first {len(x)} examples, as {size[0]} x {size[1]} pixels, "
        f"{_to_bounds(options)}",
    )


def _images_of(model: Any) -> tuple[tuple[int, int], int]:
    """The height and width of the images that a model takes, and their channels."""
    shape = getattr(_classifier(model), "input_shape", None)
    sides = list(shape[1:]) if isinstance(shape, tuple) else []
    if len(sides) == 2:  # Keras drops a last axis of one by itself.
        sides.append(1)
    if len(sides) == 3 and keras.config.image_data_format() == "channels_first":
        sides = [*sides[1:], sides[0]]
    if len(sides) != 3 or sides[2] is None:
        raise ValueError(
            "the images in a folder are for a model that takes images of a height, a width and a "
            f"number of channels, and this one takes {shape and shape[1:]}: save arrays x and y "
            "with numpy.savez, and pass that file"
        )
    return (sides[0] or _SIDE, sides[1] or _SIDE), sides[2]


def _check_classes(model: Any, names: list[str]) -> None:
    """Raises a `ValueError` where folders are not one for each class, which would renumber them."""
    shape = getattr(_classifier(model), "output_shape", None)
    if not isinstance(shape, tuple) or not isinstance(shape[-1], int):
        return
    num_classes = max(2, shape[-1])
    if len(names) != num_classes:
        raise ValueError(
            f"it must hold a folder for each of the model's {num_classes} classes, which are "
            "numbered in the order of the folders' names; that of a class without images may be "
            f"empty. Received: {len(names)} folders"
        )


def _classifier(model: Any) -> Any:
    return model.base_model if isinstance(model, RobustModel) else model


def _warn_of_classes(options: argparse.Namespace, labels: np.ndarray, num_classes: int) -> None:
    found = len(set(labels.tolist()))
    if options.num_examples is not None and found < num_classes:
        warnings.warn(
            f"--num-examples {options.num_examples} takes the first ones of --data "
            f"{options.data}, which are of {found} of {num_classes} classes",
            stacklevel=2,
        )


def _to_bounds(options: argparse.Namespace) -> str:
    return f"scaled to {options.bounds[0]:g} to {options.bounds[1]:g}"
