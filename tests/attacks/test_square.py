"""Square needs no gradient, stays in the ball, and finds more with more queries."""

import keras
import numpy as np
import pytest
from keras import ops

import keras_robust as kr

pytestmark = pytest.mark.slow_on_jax


def quantized_threshold(x):
    """Predicts class 1 if the mean of the rounded values is greater than 1/2. Has no gradient."""
    level = ops.mean(ops.round(ops.reshape(x, (x.shape[0], -1)) * 10) / 10, axis=1)
    z = ops.stop_gradient(level) - 0.5
    return ops.stack([-z, z], axis=1)


def test_fools_a_model_without_a_gradient():
    # A shift of all values by more than 0.1 changes the class.
    x = np.full((20, 8, 8, 1), 0.6, "float32")
    attack = kr.attacks.Square(0.2, num_queries=300)
    result = attack.run(quantized_threshold, x, np.ones(20, "int32"), seed=0)
    assert result.success.mean() > 0.9
    assert result.norms["linf"].max() <= 0.2 + 1e-5
    np.testing.assert_array_equal(result.num_gradients, 0)
    assert (result.num_evaluations > 0).all()


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_more_queries_fool_more_examples(norm, trained_model, embedded_data):
    x, y = (values[:100] for values in embedded_data[1])
    epsilon = {"linf": 0.05, "l2": 1.0, "l1": 8.0}[norm]
    rates = [
        kr.attacks.Square(epsilon, norm=norm, num_queries=num_queries)
        .run(trained_model, x, y, seed=0)
        .success_rate
        for num_queries in (1, 300)
    ]
    assert rates[1] > rates[0] + 0.1


def test_fooled_examples_need_no_further_queries(trained_model, embedded_data):
    x, y = (values[:100] for values in embedded_data[1])
    result = kr.attacks.Square(0.05, num_queries=200).run(trained_model, x, y, seed=0)
    assert result.num_evaluations[~result.success].min() >= 200
    assert result.num_evaluations[result.success].mean() < 150


def test_is_nearly_optimal_on_a_linear_model():
    # No attack can be stronger than the known worst point of the L-infinity ball.
    rng = np.random.default_rng(0)
    model = keras.Sequential(
        [keras.Input((6, 6, 1)), keras.layers.Flatten(), keras.layers.Dense(2)]
    )
    model.set_weights([rng.normal(size=(36, 2)).astype("float32"), np.zeros(2, "float32")])
    x = rng.uniform(0.3, 0.7, (200, 6, 6, 1)).astype("float32")
    y = ops.convert_to_numpy(model(x)).argmax(1)
    kernel = model.get_weights()[0]
    w = (kernel[:, 1] - kernel[:, 0]) * np.where(y == 0, 1, -1)[:, None]
    z = (x.reshape(200, -1) * w).sum(1)
    vulnerable = z + 0.09 * abs(w).sum(1) > 0
    result = kr.attacks.Square(0.09, num_queries=1000).run(model, x, y, seed=0)
    assert 0.1 < vulnerable.mean() < 0.95
    assert not (result.success & ~vulnerable).any()
    assert (result.success & vulnerable).sum() > 0.9 * vulnerable.sum()


def channels_first(x):
    return np.ascontiguousarray(np.moveaxis(x, -1, 1))


def with_channels_first(model):
    """Wraps the model to take images with channels first."""
    return lambda x: model(ops.moveaxis(x, 1, -1))


def integer_model(shape):
    """Returns a model whose logits are sums of integers, and do not depend on their order."""
    kernel = np.random.default_rng(1).integers(-3, 4, (np.prod(shape), 3)).astype("float32")
    return lambda x: ops.matmul(ops.round(ops.reshape(x, (-1, len(kernel))) * 64), kernel)


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("shape", [(9, 8, 3), (4, 6, 5, 2)], ids=["images", "volumes"])
def test_channels_first_gives_the_transposed_images(shape, norm):
    model, x = integer_model(shape), np.random.default_rng(0).random((12, *shape), "float32")
    y = ops.convert_to_numpy(model(x)).argmax(1)
    epsilon = {"linf": 0.02, "l2": 0.3, "l1": 2.0}[norm]
    attack = kr.attacks.Square(epsilon, norm, num_queries=60, num_restarts=2)
    last = attack.run(model, x, y, seed=3)
    first = attack.replace(data_format="channels_first").run(
        with_channels_first(model), channels_first(x), y, seed=3
    )
    assert 0 < last.success.sum() < len(x)
    np.testing.assert_array_equal(first.x_adv, channels_first(last.x_adv))
    np.testing.assert_array_equal(first.num_evaluations, last.num_evaluations)
    perturbed = attack.perturb(model, x, y, 3)
    transposed = attack.replace(data_format="channels_first").perturb(
        with_channels_first(model), channels_first(x), y, 3
    )
    np.testing.assert_array_equal(transposed, channels_first(ops.convert_to_numpy(perturbed)))


@pytest.mark.parametrize("shape", [(30,), (12, 3)], ids=["vectors", "rows"])
def test_the_data_format_only_affects_images(shape):
    model, x = integer_model(shape), np.random.default_rng(0).random((12, *shape), "float32")
    y = ops.convert_to_numpy(model(x)).argmax(1)
    last, first = (
        kr.attacks.Square(0.4, num_queries=20, data_format=data_format).run(model, x, y, seed=0)
        for data_format in ("channels_last", "channels_first")
    )
    assert last.success.any()
    np.testing.assert_array_equal(first.x_adv, last.x_adv)


@pytest.mark.slow
def test_is_as_strong_with_channels_first(embedded_data):
    """Attacks large images with 3 channels, where squares over wrong axes find much less."""

    def enlarged(x):
        return np.repeat(x.repeat(2, 1).repeat(2, 2), 3, -1)

    (x, y), (x_test, y_test) = (
        (enlarged(x[:count]), y[:count])
        for (x, y), count in zip(embedded_data, (3000, 200), strict=True)
    )
    model = keras.Sequential(
        [
            keras.Input((56, 56, 3)),
            keras.layers.Conv2D(16, 7, strides=3, activation="relu"),
            keras.layers.Conv2D(32, 3, strides=2, activation="relu"),
            keras.layers.Flatten(),
            keras.layers.Dense(10),
        ]
    )
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(x, y, epochs=4, verbose=0)
    transposed = with_channels_first(model)
    attack = kr.attacks.Square(0.03, num_queries=1500)
    last = attack.run(model, x_test, y_test, seed=0).success_rate
    attack = attack.replace(data_format="channels_first")
    first = attack.run(transposed, channels_first(x_test), y_test, seed=0).success_rate
    assert first == pytest.approx(last, abs=0.01)
    with pytest.warns(UserWarning, match="data_format"):
        wrong = attack.replace(data_format="channels_last").run(
            transposed, channels_first(x_test), y_test, seed=0
        )
    assert wrong.success_rate < last - 0.02


def test_data_format_defaults_to_that_of_keras_at_construction():
    before = kr.attacks.Square(0.1)
    keras.config.set_image_data_format("channels_first")
    try:
        attack = kr.attacks.Square(0.1)
    finally:
        keras.config.set_image_data_format("channels_last")
    assert (before.data_format, attack.data_format) == ("channels_last", "channels_first")
    assert attack.replace(epsilon=0.2).data_format == "channels_first"
    assert attack.get_config()["data_format"] == "channels_first"
    assert "data_format='channels_first'" in repr(attack)
    with pytest.raises(ValueError, match=r"`data_format`.*Received: data_format='NCHW'"):
        kr.attacks.Square(0.1, data_format="NCHW")


def check_shape(data_format, shape):
    x = np.full((2, *shape), 0.5, "float32")
    attack = kr.attacks.Square(0.1, data_format=data_format)
    attack.check(lambda x: ops.reshape(x, (2, -1))[:, :2] - 1, x, np.array([0, 1]))


@pytest.mark.parametrize(
    ("data_format", "shape"),
    [
        ("channels_last", (3, 56, 56)),
        ("channels_last", (1, 28, 28)),
        ("channels_last", (1, 5, 6)),
        ("channels_first", (28, 28, 1)),
        ("channels_first", (32, 24, 3)),
    ],
)
def test_warns_if_images_seem_to_have_the_other_data_format(data_format, shape):
    message = rf"{shape[0]}, {shape[1]}, {shape[2]}.*`data_format` is \"{data_format}\""
    with pytest.warns(UserWarning, match=message):
        check_shape(data_format, shape)


@pytest.mark.parametrize(
    ("data_format", "shape"),
    [
        ("channels_last", (28, 28, 1)),
        ("channels_last", (3, 3, 4)),
        ("channels_last", (3, 32, 2)),
        ("channels_last", (1, 1, 64)),
        ("channels_last", (1, 28, 3)),
        ("channels_first", (3, 56, 56)),
        ("channels_first", (64, 1, 1)),
        *(
            (data_format, shape)
            for data_format in ("channels_last", "channels_first")
            for shape in ((3, 3, 2), (1, 6, 1), (30,), (3, 30), (4, 6, 5, 2))
        ),
    ],
)
def test_does_not_warn(data_format, shape):
    check_shape(data_format, shape)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize(
    "data_format",
    ["channels_last", pytest.param("channels_first", marks=pytest.mark.slow)],
)
def test_windows_overlap_the_mask(norm, data_format):
    # 95% of windows over the whole image would miss these 6 of 400 pixels.
    mask = np.zeros((20, 20, 1))
    mask[15:17, 3:6] = 1
    if data_format == "channels_first":
        mask = mask.transpose(2, 0, 1)
    queries = []

    def function(x):
        queries.append(x[0])
        return np.tile([2.0, 0.0], (len(x), 1))

    x = np.full((1, *mask.shape), 0.5, "float32")
    attack = kr.attacks.Square(0.3, norm=norm, num_queries=200, data_format=data_format)
    attack.run(kr.BlackBox(function), x, np.zeros(1, int), mask=mask)
    images = np.array(queries)
    assert (images[:, mask == 0] == 0.5).all()
    # No query succeeds, so after `x` all queries are changes of the first one.
    changed = (images[100:] != images[1]).any(axis=(1, 2, 3))
    assert changed.mean() > 0.3
