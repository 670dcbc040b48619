"""float64 stays float64, on JAX too, where it may be switched on."""

import contextlib

import keras
import numpy as np
import pytest
from keras import ops

import keras_robust as kr
from keras_robust.model.classifier import Classifier


@pytest.fixture
def double_precision():
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    with contextlib.ExitStack() as stack:
        if keras.backend.backend() == "jax":
            import jax

            stack.enter_context(jax.enable_x64(True))
        yield
    keras.config.set_floatx("float32")


@pytest.mark.usefixtures("double_precision")
def test_outputs_layers_and_operations_keep_float64():
    rng = np.random.default_rng(0)
    weights, x = rng.normal(size=(6, 3)), rng.normal(size=(4, 6))
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(3, use_bias=False)])
    model.set_weights([weights])
    np.testing.assert_allclose(Classifier(model).predict(x), x @ weights, atol=1e-13)

    images, mask = rng.random((1, 4, 4, 1)), np.ones((1, 4, 4, 1))
    for result in (
        kr.ops.total_variation(images, mask, 1.0, num_steps=1),
        kr.layers.MaxMahalanobisClassifier(3)(ops.convert_to_tensor(x)),
        kr.layers.TotalVariation(num_steps=1)(ops.convert_to_tensor(images)),
    ):
        assert ops.convert_to_numpy(result).dtype == "float64"
