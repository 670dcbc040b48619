"""Total variation agrees with scikit-image, the optimality condition and finite differences."""

import keras
import numpy as np
import pytest
from keras import ops

import keras_robust as kr
from keras_robust import backend

pytestmark = pytest.mark.slow_on_jax

RNG = np.random.default_rng(0)
WEIGHT = 1 / 0.03
OWNER = keras.layers.Layer()


def denoised(x, mask, weight=WEIGHT, num_steps=10):
    function = backend.compiled(
        OWNER,
        (weight, num_steps),
        lambda x, mask: kr.ops.total_variation(x, mask, weight, num_steps),
    )
    return ops.convert_to_numpy(function(x, mask))


def random_mask(shape, keep=0.5):
    return RNG.random(shape) < keep


@pytest.fixture
def images(embedded_data):
    return embedded_data[1][0][:16]


def scikit_image(images, num_steps):
    restoration = pytest.importorskip("skimage.restoration")
    return np.stack(
        [
            restoration.denoise_tv_bregman(
                x, weight=WEIGHT, max_num_iter=num_steps, eps=0, isotropic=True, channel_axis=-1
            ).reshape(x.shape)
            for x in images
        ]
    )


def interior(x):
    return x[:, 4:-4, 4:-4]


def test_the_limit_agrees_with_scikit_image(images):
    limit, theirs = denoised(images, np.ones_like(images), num_steps=200), scikit_image(images, 500)
    difference = abs(limit - theirs)
    assert interior(difference).max() < 0.001
    assert 0.3 < difference.max() < 0.7  # scikit-image treats the border differently.


def test_ten_steps_are_nearer_to_the_limit_than_those_of_scikit_image(images):
    mask = np.ones_like(images)
    limit, ours = (denoised(images, mask, num_steps=n) for n in (200, 10))
    theirs = scikit_image(images, 10)
    assert interior(abs(ours - limit)).mean() < 0.005
    assert 0.006 < interior(abs(theirs - limit)).mean() < 0.01
    assert interior(abs(ours - theirs)).mean() < 0.01
    assert interior(abs(ours - theirs)).max() < 0.12


def test_channels_are_separate_as_in_scikit_image(images):
    x = np.concatenate([images[:4], images[4:8], images[8:12]], axis=-1)
    mask = random_mask(x.shape)
    separate = np.concatenate([denoised(x[..., [c]], mask[..., [c]]) for c in range(3)], axis=-1)
    np.testing.assert_allclose(denoised(x, mask), separate, atol=1e-6)
    full = np.ones_like(x)
    difference = denoised(x, full, num_steps=200) - scikit_image(x, 500)
    assert interior(abs(difference)).max() < 0.001


def test_convergence(images):
    mask = np.ones_like(images)
    limit = denoised(images, mask, num_steps=1000)
    assert abs(denoised(images, mask, num_steps=100) - limit).max() < 0.001
    mask = random_mask(images.shape)
    limit = denoised(images, mask, num_steps=1500)
    distances = [abs(denoised(images, mask, num_steps=n) - limit).mean() for n in (10, 100)]
    assert distances[0] < 0.03
    assert distances[1] < 0.007


@pytest.mark.parametrize("keep", [1.0, 0.5])
def test_the_gradient_of_the_functional_is_0_at_the_limit(keep):
    # phi'(r) = a / (a + 1) with lambda r = a^2 / (a + 1).
    x, weight = RNG.random((3, 7, 6, 2)), 8.0
    mask = random_mask(x.shape, keep)
    z = denoised(x.astype("float32"), mask, weight, 3000).astype("float64")
    down, right = np.zeros_like(z), np.zeros_like(z)
    down[:, :-1], right[:, :, :-1] = np.diff(z, axis=1), np.diff(z, axis=2)
    length = np.sqrt(down**2 + right**2)
    scaled = 2 * weight * length
    a = (scaled + np.sqrt(scaled**2 + 4 * scaled)) / 2
    slope = a / (a + 1) / np.maximum(length, 1e-12)
    gradient = weight * mask * (z - x)
    for axis, difference in ((1, down), (2, right)):
        flow = slope * difference
        gradient -= flow - np.roll(flow, 1, axis)  # The wrapped values are 0.
    assert abs(gradient).max() < 0.02
    assert abs(weight * mask * (z - x)).max() > 1


def test_constant_images_do_not_change():
    x = np.full((2, 6, 5, 3), 0.3, "float32")
    np.testing.assert_allclose(denoised(x, random_mask(x.shape, 0.8)), x, atol=1e-6)


def test_masked_pixels_are_ignored():
    x = RNG.random((2, 9, 8, 3)).astype("float32")
    mask = random_mask(x.shape)
    z = denoised(x, mask)
    np.testing.assert_array_equal(denoised(np.where(mask, x, np.nan), mask.astype("float32")), z)
    assert np.isfinite(z).all()


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 1, 5, 1), (2, 5, 1, 3)])
def test_small_images(shape):
    x = RNG.random(shape).astype("float32")
    assert np.isfinite(denoised(x, np.ones(shape))).all()
    np.testing.assert_array_equal(denoised(x, np.zeros(shape)), np.zeros(shape))
    if shape == (1, 1, 1, 1):
        np.testing.assert_allclose(denoised(x, np.ones(shape)), x, rtol=1e-6)


def test_weight_has_the_units_of_one_over_the_images():
    x = RNG.random((2, 8, 8, 1)).astype("float32")
    mask = random_mask(x.shape)
    scaled = denoised(255 * x, mask, WEIGHT / 255) / 255
    np.testing.assert_allclose(scaled, denoised(x, mask), atol=1e-5)


def test_gradient_agrees_with_finite_differences():
    x, upstream = (RNG.random((1, 5, 6, 2)).astype("float32") for _ in range(2))
    mask = random_mask(x.shape)

    def value(x):
        return ops.sum(upstream * kr.ops.total_variation(x, mask, 8.0, 10))

    gradient = ops.convert_to_numpy(backend.input_gradient(value, ops.convert_to_tensor(x)))
    steps = 3e-3 * np.eye(x.size).reshape(-1, *x.shape[1:]).astype("float32")
    mask_of_all = np.repeat(mask, x.size, axis=0)
    up, low = (denoised(x + sign * steps, mask_of_all, 8.0) for sign in (1, -1))
    expected = ((up - low).astype("float64") * upstream).sum(axis=(1, 2, 3)) / 6e-3
    np.testing.assert_allclose(gradient.ravel(), expected, atol=3e-3)
    assert (gradient[~mask] == 0).all()
    assert abs(gradient[mask]).min() > 0.01


def test_dtypes():
    x = RNG.random((1, 4, 4, 1))
    for dtype, expected in (("float16", "float32"), ("float32", "float32"), ("uint8", "float32")):
        z = kr.ops.total_variation(x.astype(dtype), np.ones(x.shape), 1.0, 1)
        assert keras.backend.standardize_dtype(z.dtype) == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"images": np.zeros((4, 4, 1))}, "`images` and `mask`.*Received: shapes"),
        ({"mask": np.zeros((4, 4, 1))}, "`images` and `mask`.*Received: shapes"),
        ({"mask": np.zeros((2, 4, 5, 1))}, "`images` and `mask`.*Received: shapes"),
        ({"weight": 0.0}, "`weight`.*greater than 0"),
        ({"num_steps": 0}, "`num_steps`.*at least 1"),
    ],
)
def test_bad_arguments(arguments, message):
    images = np.zeros((2, 4, 4, 1), "float32")
    defaults = {"images": images, "mask": images, "weight": 1.0, "num_steps": 1}
    with pytest.raises(ValueError, match=message):
        kr.ops.total_variation(**{**defaults, **arguments})
