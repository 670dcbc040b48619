"""float64 inputs give float64 outputs, also on JAX with x64 enabled."""

import keras
import numpy as np
import pytest
from keras import ops

import keras_robust as kr
from keras_robust.model.classifier import Classifier

pytestmark = pytest.mark.gpu


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
