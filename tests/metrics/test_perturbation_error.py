"""The relative change of each layer's output agrees with NumPy."""

import keras
import numpy as np
import pytest

import keras_robust as kr
from keras_robust.evaluation import perturbation_error

pytestmark = pytest.mark.slow_on_jax

RNG = np.random.default_rng(0)
X = RNG.random((11, 6), "float32")
X_ADV = X + RNG.normal(scale=0.1, size=X.shape).astype("float32")


def relu(x):
    return np.maximum(x, 0)


def error(clean, perturbed):
    """Computes the mean over examples of the ratio of L1 norms."""
    return (np.abs(clean - perturbed).sum(axis=1) / np.abs(clean).sum(axis=1)).mean()


@pytest.fixture
def model():
    return keras.Sequential(
        [
            keras.Input((6,)),
            keras.layers.Dense(8, activation="relu", name="first"),
            keras.Sequential([keras.layers.Dense(4, name="second")], name="inner"),
        ]
    )


@pytest.mark.parametrize("batch_size", [4, 128])
def test_errors_of_all_layers_agree_with_numpy(model, batch_size):
    weights = [np.asarray(weight, "float64") for weight in model.get_weights()]
    hidden = [relu(x @ weights[0] + weights[1]) for x in (X, X_ADV)]
    outputs = [x @ weights[2] + weights[3] for x in hidden]
    errors = perturbation_error(model, X, X_ADV, batch_size=batch_size)
    assert list(errors) == ["first", "inner/second"]
    assert errors["first"] == pytest.approx(error(*hidden), rel=1e-5)
    assert errors["inner/second"] == pytest.approx(error(*outputs), rel=1e-4)


def test_every_example_has_the_same_weight():
    # The mean of ratios. The ratio of sums would depend on the brighter image only.
    model = keras.Sequential([keras.layers.Rescaling(3.0, name="scaled")])
    x = np.array([[1.0, 1.0], [100.0, 100.0]], "float32")
    x_adv = np.array([[1.0, 2.0], [100.0, 100.0]], "float32")
    assert perturbation_error(model, x, x_adv) == {"scaled": pytest.approx(0.25)}


def test_layers_can_be_chosen(model):
    errors = perturbation_error(model, X, X_ADV)
    chosen = perturbation_error(model, X, X_ADV, layers=["inner/second"])
    assert chosen == {"inner/second": errors["inner/second"]}
    assert perturbation_error(kr.RobustModel(model), X, X_ADV) == errors


def test_outputs_of_zero_are_never_nan():
    model = keras.Sequential([keras.layers.ReLU(name="relu")])
    x = np.array([[-1.0, -1.0], [1.0, 1.0]], "float32")
    assert perturbation_error(model, x, x - 0.5) == {"relu": pytest.approx(0.25)}
    assert perturbation_error(model, x, x + 1.5) == {"relu": float("inf")}
    assert perturbation_error(model, x, x) == {"relu": 0.0}


def test_layers_with_several_outputs():
    class Pair(keras.layers.Layer):
        def call(self, x):
            return x, 3 * x

    inputs = keras.Input((2,))
    first, _ = Pair(name="pair")(inputs)
    model = keras.Model(inputs, first)
    x = np.ones((4, 2), "float32")
    assert perturbation_error(model, x, x * 1.5) == {"pair": pytest.approx(0.5)}


def test_an_attack_changes_logits_more_than_noise(trained_model, embedded_data):
    x, y = (values[:50] for values in embedded_data[1])
    x_adv = kr.attacks.PGD(0.1, num_steps=10)(trained_model, x, y, seed=0)
    noise = np.clip(x + 0.1 * np.sign(RNG.normal(size=x.shape)), 0, 1).astype("float32")
    logits = trained_model.layers[-1].name
    attacked, noisy = (
        perturbation_error(trained_model, x, images)[logits] for images in (x_adv, noise)
    )
    assert attacked > 1.2 * noisy > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"x_adv": X[:3]}, r"the same shape. Received: x.shape=\(11, 6\), x_adv.shape=\(3, 6\)"),
        ({"x_adv": X * np.nan}, "finite"),
        ({"layers": ["third"]}, "no layer 'third'"),
        ({"batch_size": 0}, "`batch_size`"),
    ],
    ids=str,
)
def test_bad_input(model, arguments, message):
    with pytest.raises(ValueError, match=message):
        perturbation_error(**{"model": model, "x": X, "x_adv": X_ADV, **arguments})
