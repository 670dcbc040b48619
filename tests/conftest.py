"""What the tests share. They run on the backend that KERAS_BACKEND names."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import pytest

import keras_robust as kr

# A program that a test runs in an environment with PyTorch.
collect_ignore = ["attacks/authors_auto_attack.py"]


@pytest.fixture(autouse=True)
def _reproducible():
    """Each test starts from the same random numbers and the same global policy."""
    keras.utils.set_random_seed(0)
    yield
    keras.config.set_dtype_policy("float32")


@pytest.fixture(scope="session")
def embedded_data():
    """The embedded data as arrays: (x_train, y_train), (x_test, y_test)."""
    return tuple(
        kr.evaluation.arrays.as_arrays(kr.datasets.load("fashion_mnist_subset", split))
        for split in ("train", "test")
    )


@pytest.fixture
def small_data():
    """64 random images of 8 x 8 and their labels, for tests that need no accuracy."""
    rng = np.random.default_rng(0)
    return rng.random((64, 8, 8, 1), "float32"), rng.integers(0, 10, 64)


@pytest.fixture
def full_data_dir():
    """Folder with the full data sets of TensorFlow Datasets."""
    data_dir = os.environ.get("TFDS_DATA_DIR")
    if not data_dir or not os.path.isdir(os.path.join(data_dir, "mnist")):
        pytest.skip("needs the full MNIST: set TFDS_DATA_DIR to a folder that holds it")
    return data_dir


@pytest.fixture(scope="session")
def trained_model(embedded_data):
    """A small classifier of the embedded data, trained to about 85%; do not change it."""
    keras.utils.set_random_seed(0)
    (x, y), _ = embedded_data
    model = keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            keras.layers.Conv2D(16, 5, strides=2, padding="same", activation="relu"),
            keras.layers.Conv2D(32, 5, strides=2, padding="same", activation="relu"),
            keras.layers.Flatten(),
            keras.layers.Dense(10),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer="adam", loss=loss)
    model.fit(x, y, batch_size=128, epochs=5, verbose=0)
    return model
