"""Data sets of arrays, for tests that also run without TensorFlow."""

import keras
import pytest

import keras_robust as kr


def tf_data(*arrays):
    """Returns a `tf.data.Dataset`. Skips the test if TensorFlow is not installed."""
    tf = pytest.importorskip("tensorflow", reason="`tf.data` needs TensorFlow")
    return tf.data.Dataset.from_tensor_slices(arrays)


def pairs(images, labels):
    """Returns a data set like `kr.datasets.load`: `tf.data` on TensorFlow, arrays on JAX."""
    if keras.backend.backend() == "tensorflow":
        return tf_data(images, labels)
    return kr.datasets.ArrayDataset(images, labels)
