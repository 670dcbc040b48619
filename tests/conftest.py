"""Shared fixtures. The tests run on the backend given by `KERAS_BACKEND`."""

import gc
import os
import types

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import pytest
from emulated_tf32 import emulate
from keras import ops

import keras_robust as kr

# A script for an environment with PyTorch.
collect_ignore = ["attacks/authors_auto_attack.py"]


def pytest_addoption(parser):
    parser.addoption("--tf32", action="store_true", help="emulate the TF32 products of recent GPUs")


@pytest.fixture
def tf32(monkeypatch):
    """Emulates TF32 in the library's float32 matrix products, as is the default on GPUs."""
    emulate(monkeypatch)


@pytest.fixture(autouse=True)
def _tf32_everywhere(request):
    if request.config.getoption("--tf32"):
        request.getfixturevalue("tf32")


@pytest.fixture
def error_of_terms(request):
    """Returns the tolerance for the terms of a network's products, relative to their size.

    In TF32, which networks use, both factors are rounded to 10 bits.
    """
    return 2.1 * 2**-11 if request.config.getoption("--tf32") else 0.0


@pytest.fixture
def networks_in_float32():
    """Makes networks on a GPU multiply in full precision.

    By default, networks use TF32 on recent GPUs, with errors of 1e-3. Tests that compare an attack
    with a closed form to 1e-5 need more precision. Without a GPU it has no effect.
    """
    if keras.backend.backend() == "jax":
        import jax

        with jax.default_matmul_precision("highest"):
            yield
    else:
        import tensorflow as tf

        allows_tf32 = tf.config.experimental.tensor_float_32_execution_enabled()
        tf.config.experimental.enable_tensor_float_32_execution(False)
        yield
        tf.config.experimental.enable_tensor_float_32_execution(allows_tf32)


@pytest.fixture(autouse=True)
def _reproducible():
    """Resets the random seed before each test, and the global dtype policy after it."""
    keras.utils.set_random_seed(0)
    yield
    keras.config.set_dtype_policy("float32")


@pytest.fixture(autouse=True, scope="module")
def _memory_maps():
    """Clears JAX's caches, whose memory maps may exceed Linux's limit of 65,530 per process."""
    yield
    if keras.backend.backend() == "jax":
        import jax

        gc.collect()  # Keras's models are in reference cycles.
        jax.clear_caches()
        gc.collect()


@pytest.fixture(scope="session")
def embedded_data():
    """Returns the embedded data as arrays: (x_train, y_train), (x_test, y_test)."""
    return tuple(
        kr.model.arrays.as_arrays(kr.datasets.load("fashion_mnist_subset", split))
        for split in ("train", "test")
    )


@pytest.fixture
def double_precision():
    """Uses float64 everywhere, for tests whose result would depend on rounding."""
    _set_double_precision(True)
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    yield
    keras.config.set_floatx("float32")
    _set_double_precision(False)


def _set_double_precision(value):
    """Sets JAX's x64 mode. (The name of its context manager depends on JAX's version.)"""
    if keras.backend.backend() == "jax":
        import jax

        jax.config.update("jax_enable_x64", value)


@pytest.fixture
def small_data():
    """Returns 64 random images of 8 x 8 and random labels."""
    rng = np.random.default_rng(0)
    return rng.random((64, 8, 8, 1), "float32"), rng.integers(0, 10, 64)


@pytest.fixture
def full_data_dir():
    """Returns the folder with the full data sets of TensorFlow Datasets."""
    data_dir = os.environ.get("TFDS_DATA_DIR")
    if not data_dir or not os.path.isdir(os.path.join(data_dir, "mnist")):
        pytest.skip("needs the full MNIST: set TFDS_DATA_DIR to a folder that holds it")
    return data_dir


@pytest.fixture(scope="session")
def trained_model(embedded_data):
    """Returns a small classifier of the embedded data with 85% accuracy. Do not change it."""
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


class NearestBoundary(kr.attacks.Attack):
    """Finds the smallest perturbation of an affine model `x W + b`, times `1 + overshoot`."""

    def __init__(self, kernel, bias, overshoot=0.0, norm="l2", bounds=(-10.0, 10.0)):
        super().__init__(bounds=bounds)
        self.kernel, self.bias, self.overshoot, self.norm = kernel, bias, overshoot, norm

    def get_config(self):
        return {"overshoot": self.overshoot}

    def generate(self, problem, x, start, index, seed):
        scores = ops.matmul(x, self.kernel) + self.bias
        label = ops.one_hot(problem.y, self.kernel.shape[1])
        normals = self.kernel[None] - ops.expand_dims(ops.matmul(label, self.kernel.T), -1)
        gaps = ops.sum(scores * label, 1, keepdims=True) - scores
        lengths = ops.sqrt(ops.sum(normals**2, 1))
        distances = ops.where(label > 0, 1e9, gaps / ops.maximum(lengths, 1e-9))
        nearest = ops.one_hot(ops.argmin(distances, axis=1), self.kernel.shape[1])
        distance = ops.sum(distances * nearest, axis=1)
        direction = ops.sum(normals * nearest[:, None], axis=2)
        direction = direction / ops.norm(direction, axis=1, keepdims=True)
        return x + ((1 + self.overshoot) * distance)[:, None] * direction


@pytest.fixture
def linear():
    """Returns a linear model of 3 classes, its attack, images and distances to the boundary."""
    rng = np.random.default_rng(1)
    kernel, bias = rng.normal(size=(5, 3)).astype("float32"), np.array([0.1, 0.0, -0.1], "float32")
    model = keras.Sequential([keras.Input((5,)), keras.layers.Dense(3)])
    model.set_weights([kernel, bias])
    x = rng.normal(size=(60, 5)).astype("float32")
    scores = x.astype("float64") @ kernel + bias
    classes = scores.argmax(axis=1)
    distances = np.array(
        [
            min(
                (z[c] - z[j]) / np.linalg.norm(kernel[:, c].astype("float64") - kernel[:, j])
                for j in range(3)
                if j != c
            )
            for z, c in zip(scores, classes, strict=True)
        ]
    )

    def attack(**arguments):
        return NearestBoundary(kernel, bias, **arguments)

    return types.SimpleNamespace(
        model=model, attack=attack, x=x, classes=classes, distances=distances
    )


@pytest.fixture
def threshold():
    """Makes models of one pixel that predict class 1 if it is greater than a threshold."""

    def make(value):
        def model(x):
            z = 10 * (x[:, 0, 0, 0] - value)
            return ops.stack([-z, z], axis=1)

        return model

    return make


@pytest.fixture
def pixels():
    """Returns 40 evenly spaced images of one pixel, not symmetric around 0.5, and their classes."""
    x = np.linspace(0.003, 0.983, 40, dtype="float32").reshape(40, 1, 1, 1)
    return x, (x[:, 0, 0, 0] > 0.5).astype("int32")
