"""DeepFool agrees with closed forms on linear models, and with a float64 reference."""

import keras
import numpy as np
import pytest
from keras import ops

import keras_robust as kr
from keras_robust import backend
from keras_robust.model.classifier import Classifier

pytestmark = pytest.mark.slow_on_jax

NORMS = ("l2", "linf")


def linear_model(num_classes, scale=1.0, seed=0):
    rng = np.random.default_rng(seed)
    kernel = rng.normal(size=(16, num_classes)).astype("float32")
    model = keras.Sequential(
        [keras.Input((4, 4, 1)), keras.layers.Flatten(), keras.layers.Dense(num_classes)]
    )
    model.set_weights([scale * kernel, np.zeros(num_classes, "float32")])
    x = rng.uniform(0.4, 0.6, (20, 4, 4, 1)).astype("float32")
    return model, kernel.astype("float64"), x, (x.reshape(20, -1) @ kernel).argmax(1)


def perturbed(attack, model, x, y):
    """Runs `attack.perturb`, compiled."""
    function = Classifier(model).compiled(attack.key, lambda m, *args: attack.perturb(m, *args))
    return ops.convert_to_numpy(function(x, y, backend.make_seed(0)))


def dual(w, norm):
    return np.sqrt((w**2).sum(-1)) if norm == "l2" else abs(w).sum(-1)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(("num_classes", "scale"), [(2, 1.0), (5, 0.001), (5, 1.0), (5, 1000.0)])
def test_one_step_reaches_the_nearest_hyperplane(norm, num_classes, scale):
    # The distance to where classes y and k tie is |f_k| / ||w_k||_q.
    model, kernel, x, y = linear_model(num_classes, scale)
    result = kr.attacks.DeepFool(norm=norm, bounds=(-2.0, 3.0)).run(model, x, y)
    z = x.reshape(20, -1) @ kernel
    f = z - z[np.arange(20), y][:, None]
    w = kernel.T[None] - kernel.T[y][:, None]
    with np.errstate(invalid="ignore"):
        distances = abs(f) / dual(w, norm)
    nearest = np.nanargmin(distances, axis=1)
    length = 1.02 * (distances[np.arange(20), nearest] + 1e-4 * 5)
    w = w[np.arange(20), nearest]
    unit = w / dual(w, norm)[:, None] if norm == "l2" else np.sign(w)
    expected = x + (length[:, None] * unit).reshape(x.shape)
    assert result.success.all()
    np.testing.assert_allclose(result.x_adv, expected, atol=2e-6)
    np.testing.assert_array_equal(result.num_gradients, num_classes - 1)


def network(seed=5, width=24):
    """Returns a network of one hidden layer, and its weights."""
    rng = np.random.default_rng(seed)
    first, second = rng.normal(size=(16, width)), rng.normal(size=(width, 5))
    bias = rng.normal(size=width)
    model = keras.Sequential(
        [
            keras.Input((16,)),
            keras.layers.Dense(width, activation="tanh"),
            keras.layers.Dense(5, use_bias=False),
        ]
    )
    weights = [first, bias, second]
    model.set_weights([value.astype("float32") for value in weights])
    return model, [value.astype("float32").astype("float64") for value in weights]


def reference(weights, x, y, norm, num_steps, overshoot, num_candidates):
    """Attacks one image in float64. Returns it and the number of steps."""
    first, bias, second = weights

    def logits_and_jacobian(x):
        hidden = np.tanh(x @ first + bias)
        return hidden @ second, (first * (1 - hidden**2)) @ second

    z, _ = logits_and_jacobian(x)
    classes = [k for k in np.argsort(-z) if k != y][: num_candidates - 1]
    for step in range(num_steps + 1):
        z, jacobian = logits_and_jacobian(x)
        if z.argmax() != y or step == num_steps:
            return x, step
        best = min(
            classes, key=lambda k: abs(z[k] - z[y]) / dual(jacobian[:, k] - jacobian[:, y], norm)
        )
        w = jacobian[:, best] - jacobian[:, y]
        if step >= num_steps / 2:
            w = np.where(((x == 0) & (w < 0)) | ((x == 1) & (w > 0)), 0, w)
        length = abs(z[best] - z[y]) / dual(w, norm) + 1e-4
        unit = w / dual(w, norm) if norm == "l2" else np.sign(w)
        x = np.clip(x + (1 + overshoot) * length * unit, 0, 1)
    return None


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(("num_steps", "overshoot", "num_candidates"), [(6, 0.02, 3), (6, 0.0, 9)])
def test_run_and_perturb_agree_with_the_reference(norm, num_steps, overshoot, num_candidates):
    model, weights = network()
    x = np.random.default_rng(1).uniform(-0.2, 1.2, (60, 16)).clip(0, 1).astype("float32")
    y = ops.convert_to_numpy(model(x)).argmax(1)
    y[0] = (y[0] + 1) % 5
    attack = kr.attacks.DeepFool(
        norm=norm, num_steps=num_steps, overshoot=overshoot, num_candidates=num_candidates
    )
    expected, steps = zip(
        *[
            reference(weights, image.astype("float64"), label, norm, *list(settings_of(attack)))
            for image, label in zip(x, y, strict=True)
        ],
        strict=True,
    )
    steps = np.array(steps)
    # All cases occur: no step, one step, several rounds, and steps after half of `num_steps`.
    assert {0, 1, 2} <= set(steps)
    assert (steps > num_steps / 2).sum() >= 2
    np.testing.assert_allclose(perturbed(attack, model, x, y), expected, atol=2e-4)
    result = attack.run(model, x, y)
    assert result.success.sum() > 50
    np.testing.assert_allclose(
        result.x_adv[result.success], np.array(expected)[result.success], atol=2e-4
    )
    np.testing.assert_array_equal(result.x_adv[~result.success], x[~result.success])


def settings_of(attack):
    return attack.num_steps, attack.overshoot, attack.num_candidates


def test_misclassified_images_are_not_changed():
    model, _, x, y = linear_model(5)
    y = (y + 1) % 5
    result = kr.attacks.DeepFool().run(model, x, y)
    assert result.success.all()
    np.testing.assert_array_equal(result.x_adv, x)
    np.testing.assert_array_equal(result.num_gradients, 0)


@pytest.mark.parametrize("norm", NORMS)
def test_does_not_get_stuck_at_the_bounds(norm):
    # The largest slopes point out of the bounds, so clipping removes nearly all of a plain step.
    slopes = np.where(np.arange(16) < 4, 100.0, 0.1).astype("float32")
    x = np.where(np.arange(16) < 4, 1.0, 0.5).astype("float32")[None]

    def model(x):
        score = ops.matmul(x, ops.expand_dims(slopes, 1)) - float(slopes @ x_0 + 0.3)
        return ops.concatenate([0 * score, score], axis=1)

    x_0 = x[0]
    result = kr.attacks.DeepFool(norm=norm, num_steps=10).run(model, x, np.array([0]))
    assert result.success.all()
    # The other 12 values must add 0.3 to the score: their distance is 0.3 / ||0.1||_q.
    distance = 0.3 / dual(np.full(12, 0.1), norm)
    np.testing.assert_allclose(result.norms[norm], 1.02 * distance, rtol=0.02)


def test_crosses_a_boundary_where_the_slope_vanishes():
    # f = t^3 at distance t: a plain step covers a third of the distance, so it never arrives.
    def model(x):
        t = ops.sum(x, axis=1, keepdims=True) / 4 - 1.0
        return ops.concatenate([0 * t, t**3], axis=1)

    x = np.linspace(0.05, 0.2, 5, dtype="float32")[:, None] * np.ones((1, 4), "float32")
    result = kr.attacks.DeepFool().run(model, np.tile(x, (1, 4)), np.zeros(5, "int32"))
    assert result.success.all()
    np.testing.assert_allclose(result.norms["l2"], 4 * (0.25 - x[:, 0]), atol=2e-3)


def test_a_slow_example_does_not_cost_the_others():
    def model(x):
        t = ops.sum(x, axis=1, keepdims=True) - 1.0
        t = ops.where(x[:, :1] > 0.5, t, t**3)  # Slow convergence if the first value is small.
        return ops.concatenate([0 * t, t], axis=1)

    x = np.zeros((8, 4), "float32")
    x[:7] = [0.6, 0.1, 0.1, 0.1]
    result = kr.attacks.DeepFool().run(model, x, np.zeros(8, "int32"))
    assert result.success.all()
    assert result.num_gradients[7] > 10
    assert result.num_gradients[:7].max() <= 3


def test_the_objective_gives_the_direction_and_the_model_the_success():
    model, _, x, y = linear_model(3)

    def quantized(x):
        return model(ops.round(20 * x) / 20)

    attack = kr.attacks.DeepFool(num_steps=20, objective=lambda _, x, y: model(x))
    result = attack.run(quantized, x, y)
    predicted = ops.convert_to_numpy(quantized(ops.convert_to_tensor(result.x_adv))).argmax(1)
    np.testing.assert_array_equal(result.success, predicted != y)
    assert result.success.all()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("norm", "dtype"), [("l2", "float16"), ("l2", "float32"), ("linf", "float32")]
)
def test_fools_a_trained_model_near_the_image(norm, dtype, trained_model, embedded_data):
    x, y = (values[:100] for values in embedded_data[1])
    result = kr.attacks.DeepFool(norm=norm).run(trained_model, x.astype(dtype), y)
    assert result.x_adv.dtype == dtype
    assert result.success_rate > (0.99 if dtype == "float32" else 0.95)
    # PGD with this radius fools about as many images.
    radius = float(np.quantile(result.norms[norm], 0.75))
    attack = kr.attacks.PGD(radius, norm=norm, num_steps=20)
    assert 0.65 < attack.run(trained_model, x, y, seed=0).success_rate < 0.98


@pytest.mark.slow
def test_probabilities_and_logits_give_the_same_images(trained_model, embedded_data):
    x, y = (values[:32] for values in embedded_data[1])
    softmax = keras.Sequential([trained_model, keras.layers.Softmax()])
    expected = kr.attacks.DeepFool().run(trained_model, x, y)
    result = kr.attacks.DeepFool(from_logits=False).run(softmax, x, y)
    np.testing.assert_allclose(result.x_adv, expected.x_adv, atol=1e-4)


def test_a_nan_gradient_is_an_error():
    def model(x):
        z = ops.sqrt(ops.maximum(x[:, :1] - 0.5, 0.0) * 0.0)
        return ops.concatenate([z, -z, z - 2], axis=1)

    with pytest.raises(ValueError, match="NaN or infinite"):
        kr.attacks.DeepFool().run(model, np.full((3, 4), 0.5, "float32"), np.zeros(3, "int32"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"norm": "l1"}, "`norm`.*Received: norm='l1'"),
        ({"num_steps": 0}, "`num_steps`.*Received: num_steps=0"),
        ({"overshoot": -0.1}, "`overshoot`.*Received: overshoot=-0.1"),
        ({"num_candidates": 1}, "`num_candidates` must be at least 2.*Received: num_candidates=1"),
    ],
    ids=str,
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        kr.attacks.DeepFool(**arguments)
