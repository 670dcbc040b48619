"""Arrays as data sets, for tests that run without TensorFlow too."""

import keras
import pytest

import keras_robust as kr


def tf_data(*arrays):
    """A data set of `tf.data`; where TensorFlow is not installed, the test is skipped."""
    tf = pytest.importorskip("tensorflow", reason="`tf.data` needs TensorFlow")
    return tf.data.Dataset.from_tensor_slices(arrays)


def pairs(images, labels):
    """A data set as `kr.datasets.load` makes it: `tf.data` on TensorFlow, arrays on JAX."""
    if keras.backend.backend() == "tensorflow":
        return tf_data(images, labels)
    return kr.datasets.ArrayDataset(images, labels)
