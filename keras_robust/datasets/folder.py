"""Images in a folder with one subfolder for each class."""

from collections.abc import Sequence
from typing import Any

import keras

from keras_robust.types import Images, Labels

_COLOR_MODES = {1: "grayscale", 3: "rgb", 4: "rgba"}


def load_folder(
    folder: str, image_size: tuple[int, int], channels: int, bounds: tuple[float, float]
) -> tuple[Any, list[str], list[str]]:
    """Loads the images that `keras.utils.image_dataset_from_directory` finds, in its order.

    Args:
        folder: string.
        image_size: pair of ints, the height and width to which all images are resized.
        channels: int, 1 (grayscale), 3 (RGB) or 4 (RGBA).
        bounds: pair of floats, to which the pixel values 0 and 255 are mapped.

    Returns:
        A tuple `(images, class_names, files)`. `images` is a `tf.data.Dataset`, on JAX too. It is
        not batched, and each element is a pair of a float32 image and its label. `class_names` are
        in the order of the labels. `files` are the paths of the images.

    Raises:
        ImportError: if TensorFlow is not installed.
        ValueError: if the folder has no subfolders with images, or `channels` is not 1, 3 or 4.
    """
    try:
        import tensorflow as tf
    except ImportError as error:
        raise ImportError(
            "Reading folders of images requires TensorFlow, on JAX too. Install it with the extra "
            "`tensorflow`: `pip install 'keras-robust[tensorflow]'`. Alternatively, read the "
            "images yourself and save the arrays `x` and `y` with `numpy.savez`."
        ) from error
    if channels not in _COLOR_MODES:
        raise ValueError(f"image files have 1, 3 or 4 channels, not {channels}")
    data = keras.utils.image_dataset_from_directory(
        folder,
        color_mode=_COLOR_MODES[channels],
        image_size=image_size,
        batch_size=None,
        shuffle=False,
        verbose=False,
    )
    low, high = bounds

    def scaled(image: Images, label: Labels) -> tuple[Any, Any]:
        return tf.clip_by_value(low + (high - low) * (image / 255), low, high), label

    images = data.map(scaled, num_parallel_calls=tf.data.AUTOTUNE)
    return images, data.class_names, data.file_paths


def first_damaged(files: Sequence[str]) -> str | None:
    """Returns the first file that is not a readable image, or `None`."""
    import tensorflow as tf

    for file in files:
        try:
            tf.io.decode_image(tf.io.read_file(file), expand_animations=False)
        except tf.errors.OpError:
            return file
    return None
