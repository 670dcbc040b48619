"""On JAX on a CPU, convolutions in attacks have a faster gradient with the same value."""

import re

import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_robust as kr
from keras_robust import backend
from keras_robust.model.classifier import Classifier

pytestmark = pytest.mark.skipif(
    backend.convolution_for_loops() is None,
    reason="convolutions are only replaced on JAX on a CPU",
)
RNG = np.random.default_rng(0)
SHAPES = {1: (7, 2), 2: (7, 8, 2), 3: (5, 6, 5, 2)}
KINDS = {1: layers.Conv1D, 2: layers.Conv2D, 3: layers.Conv3D}


class Standardized(layers.Conv2D):
    """A custom convolution."""

    def convolution_op(self, inputs, kernel):
        return super().convolution_op(inputs, kernel / ops.std(kernel))


def squares(model, x):
    return ops.sum(model(x) ** 2)


def gradients(layer, x):
    """Returns the gradient of the sum of squares in an attack, and by plain Keras."""
    model = keras.Sequential([keras.Input(x.shape[1:]), layer])
    attacked = Classifier(model).compiled(
        "test",
        lambda classifier, x: backend.input_gradient(
            lambda x: ops.sum(classifier.outputs(x) ** 2), x
        ),
    )
    plain = backend.compiled(
        model, "plain", lambda x: backend.input_gradient(lambda x: squares(model, x), x)
    )
    return ops.convert_to_numpy(attacked(x)), ops.convert_to_numpy(plain(x))


@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize(("strides", "dilation"), [(1, 1), (2, 1), (3, 1), (1, 2)])
@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_the_gradient_agrees_with_keras(rank, size, strides, dilation, padding):
    layer = KINDS[rank](3, size, strides=strides, dilation_rate=dilation, padding=padding)
    found, expected = gradients(layer, RNG.normal(size=(2, *SHAPES[rank])).astype("float32"))
    assert abs(expected).max() > 0.1
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "layer",
    [
        lambda: layers.Conv2D(4, 3, groups=2),
        lambda: layers.Conv2D(4, 3, activation="relu"),
        lambda: layers.Conv2D(4, (3, 1), strides=(1, 2), use_bias=False),
        lambda: layers.Conv2DTranspose(4, 3, strides=2),
        lambda: layers.DepthwiseConv2D(3),
        lambda: layers.SeparableConv2D(4, 3),
        lambda: Standardized(4, 3),
    ],
)
def test_other_layers_agree_with_keras(layer):
    found, expected = gradients(layer(), RNG.normal(size=(2, 7, 8, 2)).astype("float32"))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_causal_padding_agrees_with_keras():
    layer = layers.Conv1D(4, 3, padding="causal")
    found, expected = gradients(layer, RNG.normal(size=(2, 7, 2)).astype("float32"))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_all_convolutions_of_an_attack_have_the_fast_order_of_axes():
    import jax

    model = keras.Sequential(
        [
            keras.Input((8, 8, 2)),
            layers.Conv2D(4, 3, strides=2),
            keras.Sequential([layers.Conv2D(4, 3, padding="same")]),
            layers.GlobalMaxPooling2D(),
        ]
    )
    attack, y = kr.attacks.PGD(0.1, num_steps=3), np.arange(5) % 4
    x = RNG.random((5, 8, 8, 2), "float32")
    perturb = jax.jit(lambda x: attack.perturb(model, x, y, 0)).lower(x).compile()
    orders = re.findall(r" convolution\(.*dim_labels=(\S+?),? ", perturb.as_text())
    assert len(orders) >= 4
    assert set(orders) == {"b01f_01io->b01f"}
    assert "convolution_op" not in vars(model.layers[0])
