"""The denoiser agrees with a U-Net in NumPy."""

import keras
import numpy as np
import pytest
from keras import ops

import keras_robust as kr

RNG = np.random.default_rng(0)


def convolve(x, kernel, stride):
    """Convolves with "same" padding, whose larger half is at the end."""
    size = kernel.shape[0]
    out = [-(-n // stride) for n in x.shape[1:3]]
    total = [max((m - 1) * stride + size - n, 0) for m, n in zip(out, x.shape[1:3], strict=True)]
    x = np.pad(x, [(0, 0), *[(t // 2, t - t // 2) for t in total], (0, 0)])
    y = np.zeros((len(x), *out, kernel.shape[-1]))
    for i in range(out[0]):
        for j in range(out[1]):
            patch = x[:, i * stride : i * stride + size, j * stride : j * stride + size]
            y[:, i, j] = np.einsum("bhwc,hwcd->bd", patch, kernel)
    return y


def interpolate(x, size, axis):
    """Interpolates linearly between centers of pixels, with constant extrapolation."""
    old = x.shape[axis]
    place = np.clip((np.arange(size) + 0.5) * old / size - 0.5, 0, old - 1)
    low = np.floor(place).astype(int)
    high = np.minimum(low + 1, old - 1)
    shape = [-1 if a == axis else 1 for a in range(4)]
    part = (place - low).reshape(shape)
    return np.take(x, low, axis) * (1 - part) + np.take(x, high, axis) * part


def block(x, convolutions, norms, stride, training):
    for convolution, norm in zip(convolutions, norms, strict=True):
        x = convolve(x, np.asarray(convolution.kernel, "float64"), stride)
        stride = 1
        gamma, beta, mean, variance = (np.asarray(w, "float64") for w in norm.get_weights())
        if training:
            mean, variance = x.mean((0, 1, 2)), x.var((0, 1, 2))
        x = np.maximum(gamma * (x - mean) / np.sqrt(variance + 1e-3) + beta, 0)
    return x


def reference(layer, image, training):
    """Computes a denoiser with three widths."""
    first, second, third = layer.down
    a = block(image, first.convolutions, first.norms, 1, training)
    b = block(a, second.convolutions, second.norms, 2, training)
    c = block(b, third.convolutions, third.norms, 2, training)
    top, bottom = layer.up
    c = interpolate(interpolate(c, b.shape[1], 1), b.shape[2], 2)
    d = block(np.concatenate([c, b], -1), bottom.convolutions, bottom.norms, 1, training)
    d = interpolate(interpolate(d, a.shape[1], 1), a.shape[2], 2)
    e = block(np.concatenate([d, a], -1), top.convolutions, top.norms, 1, training)
    return image + convolve(e, np.asarray(layer.difference.kernel, "float64"), 1)


def random_weight(rng, shape):
    """Draws weights that keep the activations near 1 in each layer."""
    if len(shape) == 1:
        return rng.uniform(0.5, 1.5, shape)
    return rng.uniform(-1, 1, shape) * np.sqrt(6 / np.prod(shape[:-1]))


@pytest.mark.slow_on_jax
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("shape", [(3, 8, 8, 1), (2, 7, 5, 3)])
def test_output_agrees_with_the_u_net(shape, training):
    rng = np.random.default_rng(0)
    layer = kr.layers.GuidedDenoiser(widths=(2, 3, 4))
    layer.build((None, *shape[1:]))
    layer.set_weights([random_weight(rng, w.shape) for w in layer.get_weights()])
    image = rng.random(shape).astype("float32")
    expected = reference(layer, image.astype("float64"), training)
    before = layer.get_weights()
    found = ops.convert_to_numpy(layer(image, training=training))
    assert abs(found - image).max() > 0.1
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    changed = any((a != b).any() for a, b in zip(before, layer.get_weights(), strict=True))
    assert changed == training


@pytest.mark.slow_on_jax
def test_number_of_parameters_is_that_of_the_paper():
    layer = kr.layers.GuidedDenoiser()
    layer.build((None, 28, 28, 1))
    # Two 3x3 convolutions in the first block, and three in the others.
    down = 64 + 64**2 + 64 * 128 + 2 * 128**2 + 128 * 256 + (2 + 3 + 3) * 256**2
    up = (2 + 2) * 256**2 + 2 * (512 * 256) + (256 + 128) * 128 + 2 * 128**2 + 192 * 64 + 64**2
    kernels = sum(int(np.prod(w.shape)) for w in layer.weights if len(w.shape) == 4)
    assert kernels == 9 * (down + up) + 64
    assert 11e6 < layer.count_params() < 11.1e6


@pytest.mark.slow_on_jax
def test_shapes_and_saved_widths():
    layer = kr.layers.GuidedDenoiser(widths=[2, 3])
    assert layer.compute_output_shape((None, 9, 11, 1)) == (None, 9, 11, 1)
    for size in (1, 9):
        assert layer(np.zeros((2, size, 6, 1))).shape == (2, size, 6, 1)
    assert kr.layers.GuidedDenoiser.from_config(layer.get_config()).widths == [2, 3]


def test_half_precision():
    layer = kr.layers.GuidedDenoiser(widths=(2, 3), dtype="mixed_float16")
    found = layer(RNG.random((2, 6, 6, 1)).astype("float32"), training=True)
    assert keras.backend.standardize_dtype(found.dtype) == "float16"
    assert {keras.backend.standardize_dtype(v.dtype) for v in layer.weights} == {"float32"}
    assert np.isfinite(ops.convert_to_numpy(found)).all()


@pytest.mark.parametrize(
    ("widths", "message"),
    [
        ((4,), "at least two integers.*Received: widths=.4,"),
        (3, "`widths` must be a sequence"),
        ((4, 0), "`widths`.*at least 1"),
        ((4, 2.5), "`widths`.*integer"),
    ],
)
def test_bad_arguments(widths, message):
    with pytest.raises(ValueError, match=message):
        kr.layers.GuidedDenoiser(widths)


def test_bad_inputs():
    with pytest.raises(ValueError, match="ndim=4"):
        kr.layers.GuidedDenoiser((2, 3))(np.zeros((2, 6, 6)))
    with pytest.raises(ValueError, match="channels of the images must be known"):
        kr.layers.GuidedDenoiser((2, 3)).build((None, 6, 6, None))
    layer = kr.layers.GuidedDenoiser((2, 3))
    with pytest.raises(ValueError, match="Height and width of the images must be known"):
        layer.call(keras.KerasTensor((None, None, 6, 1)))
