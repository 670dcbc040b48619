"""Loads images and labels as arrays, from a `.npz` file or from TensorFlow Datasets.

`python examples/reproductions data` writes the `.npz` files, for machines without TensorFlow. They
store CIFAR-10 as the original JPEG bytes. Pillow decodes these, and its images may differ from
those of TensorFlow's decoder by a few grey levels.
"""

import functools
import io
import os
import pathlib

import numpy as np

import keras_robust as kr
from keras_robust.model.arrays import as_arrays
from keras_robust.whole_file import write_whole

NAMES = ("mnist", "fashion_mnist", "cifar10_jpeg")
SPLITS = ("train", "test")
Split = tuple[np.ndarray, np.ndarray]


@functools.cache
def load(name: str, data_dir: str | None) -> tuple[Split, Split]:
    """Returns the training and the test split.

    Images are float32 in [0, 1], and labels are int64.
    """
    path = _folder(data_dir) / f"{name}.npz"
    if path.exists():
        with np.load(path) as file:
            train, test = (_from_file(file, split) for split in SPLITS)
    else:
        train, test = (as_arrays(kr.datasets.load(name, s, data_dir=data_dir)) for s in SPLITS)
    return train, test


def write(name: str, data_dir: str | None, folder: pathlib.Path) -> pathlib.Path:
    """Writes a data set of TensorFlow Datasets to `folder / NAME.npz`, and returns the path."""
    import tensorflow_datasets as tfds

    builder = tfds.builder(name, data_dir=data_dir)
    is_jpeg = builder.info.features["image"].encoding_format == "jpeg"
    decoders = {"image": tfds.decode.SkipDecoding()} if is_jpeg else None
    arrays = {}
    for split in SPLITS:
        examples = builder.as_dataset(split=split, decoders=decoders).as_numpy_iterator()
        images, labels = zip(*((e["image"], e["label"]) for e in examples), strict=True)
        arrays[f"{split}_labels"] = np.array(labels, "uint8")
        if is_jpeg:
            arrays[f"{split}_lengths"] = np.array([len(image) for image in images], "uint32")
            arrays[f"{split}_jpeg"] = np.frombuffer(b"".join(images), "uint8")
        else:
            arrays[f"{split}_images"] = np.stack(images)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.npz"
    write_whole(path, lambda file: np.savez_compressed(file, **arrays))
    return path


def _folder(data_dir: str | None) -> pathlib.Path:
    return pathlib.Path(data_dir or os.environ.get("TFDS_DATA_DIR", "."))


def _from_file(file: np.lib.npyio.NpzFile, split: str) -> Split:
    if f"{split}_images" in file:
        images = file[f"{split}_images"]
    else:
        ends = np.cumsum(file[f"{split}_lengths"])
        data = file[f"{split}_jpeg"].tobytes()
        images = np.stack([_decoded(data[s:e]) for s, e in zip([0, *ends[:-1]], ends, strict=True)])
    return images.astype("float32") / np.float32(255), file[f"{split}_labels"].astype("int64")


def _decoded(jpeg: bytes) -> np.ndarray:
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError("CIFAR-10's JPEG images need Pillow: `pip install pillow`.") from error
    return np.asarray(Image.open(io.BytesIO(jpeg)))
