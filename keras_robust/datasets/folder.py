"""Images in a folder, which holds a folder for each class."""

from collections.abc import Sequence
from typing import Any

import keras

_COLOR_MODES = {1: "grayscale", 3: "rgb", 4: "rgba"}


def load_folder(
    folder: str, image_size: tuple[int, int], channels: int, bounds: tuple[float, float]
) -> tuple[Any, list[str], list[str]]:
    """Reads what `keras.utils.image_dataset_from_directory` does, in its order.

    Args:
        folder: string.
        image_size: pair of ints, the height and width that all images are resized to.
        channels: int, 1 (gray), 3 (colour) or 4 (with opacity).
        bounds: pair of floats, what 0 and 255 become.

    Returns:
        A `tf.data.Dataset`, on JAX too: of pairs, not batched, of an image, float32, and its label.
        The names of the classes, in the order of the labels. The files of the images.

    Raises:
        ImportError: if TensorFlow is not installed.
        ValueError: if there is no image in a folder for each class, or the channels are others.
    """
    try:
        import tensorflow as tf
    except ImportError as error:
        raise ImportError(
            "Folders of images are read by TensorFlow, on JAX too. Install it with the extra "
            "`tensorflow`: `pip install 'keras-robust[tensorflow]'`. Or read the images yourself "
            "and save the arrays `x` and `y` with `numpy.savez`."
        ) from error
    if channels not in _COLOR_MODES:
        raise ValueError(f"images in files have 1, 3 or 4 channels, not {channels}")
    data = keras.utils.image_dataset_from_directory(
        folder,
        color_mode=_COLOR_MODES[channels],
        image_size=image_size,
        batch_size=None,
        shuffle=False,
        verbose=False,
    )
    low, high = bounds

    def scaled(image: Any, label: Any) -> tuple[Any, Any]:
        return tf.clip_by_value(low + (high - low) * (image / 255), low, high), label

    images = data.map(scaled, num_parallel_calls=tf.data.AUTOTUNE)
    return images, data.class_names, data.file_paths


def first_damaged(files: Sequence[str]) -> str | None:
    """The first of the files that holds no image; `None` if all of them do."""
    import tensorflow as tf

    for file in files:
        try:
            tf.io.decode_image(tf.io.read_file(file), expand_animations=False)
        except tf.errors.OpError:
            return file
    return None
