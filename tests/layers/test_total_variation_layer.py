"""The layer of total variation minimization: randomness, gradients, data and robustness."""

import copy

import keras
import numpy as np
import pytest
from keras import ops

import keras_robust as kr
from keras_robust import backend

pytestmark = pytest.mark.slow_on_jax

X = np.random.default_rng(0).random((4, 8, 8, 3)).astype("float32")
TENSORFLOW_ONLY = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="layers run in tf.data on TensorFlow alone"
)


def numpy(x):
    return ops.convert_to_numpy(x)


def classifier(**arguments):
    return keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            kr.layers.TotalVariation(**arguments),
            keras.layers.Flatten(),
            keras.layers.Dense(3),
        ]
    )


def state(layer):
    return numpy(layer.seed_generator.state.value)


def test_without_drops_it_agrees_with_the_op():
    layer = kr.layers.TotalVariation(drop_rate=0, weight=5.0, num_steps=7)
    expected = kr.ops.total_variation(X, np.ones_like(X), 5.0, 7)
    np.testing.assert_allclose(numpy(layer(X)), numpy(expected), atol=1e-6)
    np.testing.assert_array_equal(layer(X), layer(X, training=False))


def test_the_mask_drops_pixels_and_channels_at_the_rate():
    # With a huge weight, kept pixels do not change and dropped ones are interpolated.
    x = np.random.default_rng(0).random((20, 16, 16, 3)).astype("float32")
    z = numpy(kr.layers.TotalVariation(drop_rate=0.3, weight=1e6, num_steps=1, seed=0)(x))
    dropped = abs(z - x) > 1e-3
    assert abs(dropped.mean() - 0.3) < 0.02
    independent = dropped[..., 0] & dropped[..., 1]
    assert abs(independent.mean() - 0.09) < 0.02
    assert abs(dropped[0] ^ dropped[1]).mean() > 0.3


def test_is_random_in_inference_and_reproducible_by_its_seed():
    one, two = (kr.layers.TotalVariation(seed=3) for _ in range(2))
    first, second = numpy(one(X, training=False)), numpy(one(X, training=False))
    assert abs(first - second).max() > 0.05
    np.testing.assert_array_equal(numpy(two(X)), first)
    model = classifier(seed=3)
    assert abs(model.predict(X, verbose=0) - model.predict(X, verbose=0)).max() > 1e-3


@pytest.mark.parametrize("gradient", ["identity", "exact"])
def test_gradient(gradient):
    layer = kr.layers.TotalVariation(seed=3, gradient=gradient)

    def value(x):
        return ops.sum(ops.square(layer(x)))

    found = numpy(backend.input_gradient(value, ops.convert_to_tensor(X)))
    z = numpy(kr.layers.TotalVariation(seed=3)(X))
    if gradient == "identity":
        np.testing.assert_allclose(found, 2 * z, atol=1e-5)
    else:
        assert abs((found == 0).mean() - 0.5) < 0.06  # Dropped pixels.


@pytest.mark.slow
@pytest.mark.parametrize("gradient", ["identity", "exact"])
def test_an_attack_does_not_change_the_state_of_the_layer(gradient):
    model = classifier(seed=3, num_steps=2, gradient=gradient)
    layer, y = model.layers[0], np.array([0, 1, 2, 0])
    before = state(layer)
    attack = kr.attacks.PGD(0.1, num_steps=2, num_samples=4)
    results = [attack.run(model, X, y, seed=0) for _ in range(2)]
    np.testing.assert_array_equal(state(layer), before)
    np.testing.assert_array_equal(results[0].x_adv, results[1].x_adv)
    model.predict(X, verbose=0)
    assert (state(layer) != before).any()


def test_mixed_float16():
    layer = kr.layers.TotalVariation(seed=3, dtype="mixed_float16")
    z = layer(X)
    assert keras.backend.standardize_dtype(z.dtype) == "float16"
    expected = numpy(kr.layers.TotalVariation(seed=3)(X.astype("float16").astype("float32")))
    np.testing.assert_array_equal(numpy(z), expected.astype("float16"))


def test_shapes():
    layer = kr.layers.TotalVariation()
    assert layer.compute_output_shape((None, 8, 8, 3)) == (None, 8, 8, 3)
    assert layer(keras.Input((None, None, 3))).shape == (None, None, None, 3)
    with pytest.raises(ValueError, match="expected ndim=4"):
        layer(X[0])


def test_config_deepcopy_and_keras_file(tmp_path):
    model = classifier(drop_rate=0.3, weight=20.0, num_steps=3, seed=5, gradient="exact")
    layer = model.layers[0]
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    for other in (copy.deepcopy(layer), again.layers[0]):
        assert other.get_config() == layer.get_config()
        np.testing.assert_array_equal(state(other), state(layer))
    np.testing.assert_array_equal(again.predict(X, verbose=0), model.predict(X, verbose=0))


@TENSORFLOW_ONLY
def test_data_augmentation():
    data = kr.datasets.load("fashion_mnist_subset", "train").take(24)
    layer = kr.layers.TotalVariation(seed=0)
    batches = data.batch(8)
    minimized = batches.map(lambda x, y: (layer(x), y), num_parallel_calls=2)
    x, y = kr.model.arrays.as_arrays(batches.concatenate(minimized).unbatch())
    assert x.shape == (48, 28, 28, 1)
    np.testing.assert_array_equal(y[:24], y[24:])
    originals, reconstructed = x[:24], x[24:]
    np.testing.assert_array_equal(originals, kr.model.arrays.as_arrays(data)[0])
    assert 0.01 < abs(originals - reconstructed).mean() < 0.1
    epochs = [kr.model.arrays.as_arrays(minimized)[0] for _ in range(2)]
    assert abs(epochs[0] - epochs[1]).mean() > 0.005


class Shift(keras.layers.Layer):
    """Adds the same weights to all images. Their gradient sums the images' gradients."""

    def build(self, input_shape):
        self.shift = self.add_weight(shape=input_shape[1:], initializer="zeros")

    def call(self, x):
        return x + self.shift


@pytest.mark.parametrize("jit_compile", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_the_exact_gradient_in_fit_agrees_with_finite_differences(jit_compile):
    layer = kr.layers.TotalVariation(drop_rate=0, weight=8.0, gradient="exact")
    model = keras.Sequential([keras.Input((8, 8, 3)), Shift(), layer])
    upstream = np.random.default_rng(1).normal(size=X.shape).astype("float32")
    model.compile(
        keras.optimizers.SGD(1.0), lambda y, z: ops.sum(y * z, axis=(1, 2, 3)),
        jit_compile=jit_compile,
    )  # fmt: skip
    model.fit(X, upstream, verbose=0)
    gradient = -model.get_weights()[0]
    assert abs(gradient).mean() > 0.01
    rng = np.random.default_rng(2)
    for _ in range(5):
        direction = rng.choice([-1, 1], X.shape[1:]).astype("float32")
        up, low = (numpy(layer(X + sign * 3e-3 * direction)) for sign in (1, -1))
        slope = ((up - low).astype("float64") * upstream).sum() / len(X) / 6e-3
        assert (gradient * direction).sum() == pytest.approx(slope, rel=1e-2, abs=1e-2)


@TENSORFLOW_ONLY
def test_fit_under_xla():
    model = classifier(seed=3)
    model.compile("sgd", "mse", jit_compile=True)
    assert np.isfinite(model.fit(X, np.zeros((4, 3)), verbose=0).history["loss"][0])


@TENSORFLOW_ONLY
@pytest.mark.slow
def test_adversarial_training_through_the_exact_gradient_under_xla():
    """Compiles the gradient of the layer's loop inside of the attack's loop."""
    attack = kr.attacks.PGD(0.1, num_steps=2, num_samples=2)
    model = kr.RobustModel(classifier(seed=3, num_steps=3, gradient="exact"))
    loss = kr.losses.AdversarialTraining(attack)
    losses = []
    for jit_compile in (True, False):
        model.compile(keras.optimizers.SGD(0.0), loss, jit_compile=jit_compile)
        losses += model.fit(X, np.array([0, 1, 2, 0]), verbose=0).history["loss"]
    # XLA draws different masks from the same seed.
    assert losses[0] == pytest.approx(losses[1], rel=0.2)


@TENSORFLOW_ONLY
@pytest.mark.slow
def test_total_variation_alone_is_not_a_defence(trained_model, embedded_data):
    x, y = (values[:200] for values in embedded_data[1])
    model = keras.Sequential(
        [keras.Input((28, 28, 1)), kr.layers.TotalVariation(seed=0), trained_model]
    )

    def accuracy(x):
        return (model.predict(x, verbose=0).argmax(1) == y).mean()

    def robust_accuracy(model, **arguments):
        attack = kr.attacks.PGD(0.1, num_steps=10, **arguments)
        return 1 - attack.run(model, x, y, seed=0).success_rate

    transferred = kr.attacks.FGSM(0.1).run(trained_model, x, y).x_adv
    undefended = robust_accuracy(trained_model)
    defended = robust_accuracy(model, num_samples=4)
    # The figures in the layer's documentation.
    measured = [accuracy(x), accuracy(transferred), defended, undefended]
    np.testing.assert_allclose(measured, [0.82, 0.22, 0.16, 0.12], atol=0.05)
    assert defended < undefended + 0.08


def channels_first(x):
    return np.ascontiguousarray(np.moveaxis(x, -1, 1))


@pytest.mark.parametrize("gradient", ["identity", "exact"])
def test_channels_first_gives_the_transposed_values(gradient):
    def values(x, data_format):
        """Returns the layer's outputs and the gradient of the sum of their squares."""
        layer = kr.layers.TotalVariation(drop_rate=0, gradient=gradient, data_format=data_format)
        x = ops.convert_to_tensor(x)
        slope = backend.input_gradient(lambda x: ops.sum(ops.square(layer(x))), x)
        return numpy(layer(x)), numpy(slope)

    x = X[:, :6]
    last = values(x, "channels_last")
    first = values(channels_first(x), "channels_first")
    for found, expected in zip(first, last, strict=True):
        assert abs(expected).mean() > 0.1
        np.testing.assert_array_equal(found, channels_first(expected))


def test_channels_first_draws_the_same_mask():
    last = numpy(kr.layers.TotalVariation(seed=3)(X))
    layer = kr.layers.TotalVariation(seed=3, data_format="channels_first")
    np.testing.assert_array_equal(layer(channels_first(X)), channels_first(last))
    assert layer.compute_output_shape((None, 3, 8, 8)) == (None, 3, 8, 8)
    assert layer(keras.Input((3, None, None))).shape == (None, 3, None, None)


def test_data_format_defaults_to_that_of_keras_and_is_saved(tmp_path):
    keras.config.set_image_data_format("channels_first")
    try:
        layer = kr.layers.TotalVariation(seed=5)
    finally:
        keras.config.set_image_data_format("channels_last")
    assert layer.data_format == "channels_first"
    model = keras.Sequential([keras.Input((3, 8, 8)), layer])
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    assert again.layers[0].data_format == "channels_first"
    x = channels_first(X)
    np.testing.assert_array_equal(again.predict(x, verbose=0), model.predict(x, verbose=0))


def test_warns_if_images_seem_to_have_the_other_data_format():
    layer = kr.layers.TotalVariation()
    with pytest.warns(UserWarning, match=r"3, 8, 8.*`data_format` is \"channels_last\""):
        layer(channels_first(X))
    layer(channels_first(X))
    layer = kr.layers.TotalVariation(data_format="channels_first")
    with pytest.warns(UserWarning, match=r"None, None, 3.*`data_format` is \"channels_first\""):
        layer(keras.Input((None, None, 3)))


@pytest.mark.parametrize("shape", [(28, 28, 1), (3, 3, 3), (1, 5, 1)])
@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
def test_does_not_warn(shape, data_format):
    if data_format == "channels_first":
        shape = shape[::-1]
    kr.layers.TotalVariation(data_format=data_format).build((None, *shape))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"drop_rate": 1.0}, "`drop_rate` must be less than 1"),
        ({"drop_rate": -0.1}, "`drop_rate`.*at least 0"),
        ({"weight": 0.0}, "`weight`.*greater than 0"),
        ({"num_steps": 0}, "`num_steps`.*at least 1"),
        ({"num_steps": 2.5}, "`num_steps`"),
        ({"gradient": "bpda"}, "`gradient`.*'identity', 'exact'"),
        ({"data_format": "NCHW"}, "`data_format`.*Received: data_format='NCHW'"),
        ({"seed": 0.5}, "`seed` must be an integer"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        kr.layers.TotalVariation(**arguments)
