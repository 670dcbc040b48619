"""Image classification data sets: the embedded subset, or TensorFlow Datasets."""

import pathlib
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from keras_robust.datasets.array_dataset import ArrayDataset

EMBEDDED = "fashion_mnist_subset"
_FILE = pathlib.Path(__file__).parent / "data" / f"{EMBEDDED}.npz"


def load(name: str, split: str, data_dir: str | None = None) -> Any:
    """Loads one split of an image classification data set.

    Args:
        name: string. `"fashion_mnist_subset"` is embedded in the package: 1,000 training and 200
            test images of each class of Fashion-MNIST. Every other name, such as `"mnist"`,
            `"fashion_mnist"` or `"cifar10"`, is loaded from TensorFlow Datasets.
        split: string. `"train"` or `"test"`. TensorFlow Datasets also accepts slices such as
            `"train[:1000]"`.
        data_dir: string. Folder in which TensorFlow Datasets stores its data. Missing data are
            downloaded. Defaults to `None`: the environment variable `TFDS_DATA_DIR`, or the
            default of TensorFlow Datasets.

    Returns:
        A `tf.data.Dataset` on TensorFlow, a `kr.datasets.ArrayDataset` on JAX. Both have `batch`,
        `shuffle`, `take`, `skip` and `map`. The data set is not batched. Each element is a pair of
        an image, float32, shape `(height, width, channels)`, scaled to [0, 1], and its label,
        int64, shape `()`. The elements are in the order of the source.

    Raises:
        ValueError: if the data set is unknown, has no such split, or does not consist of pairs of
            8-bit images and labels.
        ImportError: if TensorFlow Datasets is needed but not installed.

    Example:

    >>> import keras_robust as kr
    >>> train = kr.datasets.load("fashion_mnist_subset", "train")
    >>> len(train)
    10000
    >>> batches = train.shuffle(10_000, seed=0).batch(128)
    """
    data = None if name == EMBEDDED else _from_tensorflow_datasets(name, split, data_dir)
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        if data is None:
            data = tf.data.Dataset.from_tensor_slices(_embedded(split))
        return data.map(_scaled(tf.cast), num_parallel_calls=tf.data.AUTOTUNE)
    arrays = _embedded(split) if data is None else _in_memory(data)
    return ArrayDataset(*arrays).map(_scaled(np.asarray))


def _in_memory(data: Any) -> tuple[np.ndarray, np.ndarray]:
    if None in data.element_spec[0].shape:
        raise ValueError(
            "Argument `name` must be a data set of images of one size, which are held in memory. "
            f"Received: images of shape {data.element_spec[0].shape}"
        )
    images, labels = zip(*data.as_numpy_iterator(), strict=True)
    return np.stack(images), np.stack(labels)


def _scaled(cast: Callable[..., Any]) -> Callable[..., tuple[Any, Any]]:
    """Returns a function that scales an image from 0..255 to [0, 1] and casts its label."""
    return lambda image, label: (cast(image, "float32") / np.float32(255), cast(label, "int64"))


def _embedded(split: str) -> tuple[np.ndarray, np.ndarray]:
    if split not in ("train", "test"):
        raise ValueError(
            f"The embedded data set {EMBEDDED!r} has the splits 'train' and 'test'. "
            f"Received: split={split!r}"
        )
    with np.load(_FILE) as file:
        return file[f"{split}_images"], file[f"{split}_labels"]


def _from_tensorflow_datasets(name: str, split: str, data_dir: str | None) -> Any:
    try:
        import tensorflow as tf
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise ImportError(
            f"Data sets other than {EMBEDDED!r} require TensorFlow Datasets. Install it with the "
            f"extra `datasets`: `pip install 'keras-robust[datasets]'`. Received: name={name!r}"
        ) from error

    try:
        builder = tfds.builder(name, data_dir=data_dir)
    except (tfds.core.DatasetNotFoundError, ValueError) as error:
        raise ValueError(
            f"Argument `name` must be {EMBEDDED!r} or a data set that TensorFlow Datasets knows "
            f"or finds in `data_dir`. Received: name={name!r}, data_dir={data_dir!r}"
        ) from error
    if not _has_labelled_images(builder.info):
        raise ValueError(
            "Argument `name` must be a data set of labelled 8-bit images, with one integer label "
            "each. "
            f"Received: name={name!r}, with {builder.info.features}"
        )
    builder.download_and_prepare()
    if split.split("[")[0] not in (*builder.info.splits, "all"):
        raise ValueError(
            f"Data set {name!r} has the splits {sorted(builder.info.splits)}. "
            f"Received: split={split!r}"
        )
    dataset: tf.data.Dataset = builder.as_dataset(split=split, as_supervised=True)
    return dataset


def _has_labelled_images(info: Any) -> bool:
    """Returns whether a data set consists of 8-bit images with one class number each."""
    keys = info.supervised_keys
    if not keys or not all(isinstance(key, str) for key in keys):
        return False
    image, label = (info.features[key] for key in keys[:2])
    return (
        image.np_dtype == np.uint8
        and len(image.shape) == 3
        and label.shape == ()
        and np.issubdtype(label.np_dtype, np.integer)
    )
