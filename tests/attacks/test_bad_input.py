"""Attacks reject bad arguments, data and models with clear errors."""

import keras
import numpy as np
import pytest
from keras import ops

import keras_robust as kr
from keras_robust.model.classifier import Classifier


@pytest.fixture(scope="module")
def model():
    return keras.Sequential([keras.Input((4, 4, 1)), keras.layers.Flatten(), keras.layers.Dense(3)])


X = np.full((6, 4, 4, 1), 0.5, "float32")
Y = np.array([0, 1, 2, 0, 1, 2])
NAN = float("nan")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"epsilon": -0.1}, "`epsilon`.*at least 0.*Received: epsilon=-0.1"),
        ({"epsilon": NAN}, "`epsilon`.*finite.*Received: epsilon=nan"),
        ({"epsilon": "8/255"}, "`epsilon`.*Received: epsilon='8/255'"),
        ({"step_size": 0}, "`step_size`.*greater than 0.*Received: step_size=0"),
        ({"step_size": -1.0}, "`step_size`"),
        ({"num_steps": 0}, "`num_steps`.*at least 1.*Received: num_steps=0"),
        ({"num_steps": 2.5}, "`num_steps`"),
        ({"num_restarts": 0}, "`num_restarts`"),
        ({"num_restarts": 2, "random_start": False}, "`num_restarts` must be 1 without a random"),
        ({"norm": "l3"}, "`norm`.*'linf', 'l2', 'l1'.*Received: norm='l3'"),
        ({"bounds": (1.0, 0.0)}, "`bounds`.*Received: bounds=\\(1.0, 0.0\\)"),
        ({"bounds": (0.0, NAN)}, "`bounds`"),
        ({"bounds": 1.0}, "`bounds`"),
        ({"bounds": (0, 1, 2)}, "`bounds`"),
    ],
    ids=str,
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        kr.attacks.PGD(**{"epsilon": 0.1, **arguments})


@pytest.mark.parametrize("make", [kr.attacks.FGSM, kr.attacks.MIM, kr.attacks.MultiTargeted])
def test_attacks_without_l1_reject_it(make):
    with pytest.raises(ValueError, match=r"`norm`.*\('linf', 'l2'\).*Received: norm='l1'"):
        make(0.1, norm="l1")


def with_value(index, value):
    x = X.copy()
    x[index] = value
    return x


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (with_value(0, NAN), Y, "`x` must be finite. Received: 16 NaN or"),
        (with_value(0, np.inf), Y, "`x` must be finite"),
        (with_value(0, 1.5), Y, "`x` must lie inside.*bounds=\\(0.0, 1.0\\).*x.max\\(\\)=1.5"),
        (with_value(0, -0.1), Y, "`x` must lie inside"),
        ((X * 255).astype("uint8"), Y, "`x` must be floating.*uint8"),
        (X[:0], Y[:0], "at least one example"),
        (X, Y[:5], "same number of examples. Received: 6 in x, 5 in y"),
        (X, Y - 1, "from 0 to 2.*y.min\\(\\)=-1"),
        (X, Y + 1, "from 0 to 2.*y.max\\(\\)=3"),
        (X, Y.astype("float32"), "integer labels.*regression.*Received: y.dtype=float32"),
        (X, Y.reshape(6, 1, 1), "`y` must be integer labels of shape"),
        (X, np.eye(4)[Y], "one-hot labels of shape `\\(batch_size, 3\\)`"),
        (X, np.eye(3)[Y] * 2, "sum to 1"),
        (X, np.eye(3)[Y] * NAN, "sum to 1"),
    ],
)
def test_bad_data(model, x, y, message):
    with pytest.raises(ValueError, match=message):
        kr.attacks.PGD(0.1)(model, x, y)


def test_images_may_exceed_the_bounds_by_rounding(model):
    x = with_value(0, np.nextafter(np.float32(1), np.float32(2)))
    assert float(ops.max(kr.attacks.PGD(0.1)(model, x, Y))) <= 1.0


def test_softmax_where_logits_are_expected_is_an_error(model):
    softmax = keras.Sequential([model, keras.layers.Softmax()])
    with pytest.raises(ValueError, match=r"ends in a softmax.*Pass `from_logits=False`"):
        kr.attacks.PGD(0.1)(softmax, X, Y)


def test_logits_where_a_softmax_is_expected_are_an_error(model):
    with pytest.raises(ValueError, match=r"are not probabilities. Pass `from_logits=True`"):
        kr.attacks.PGD(0.1, from_logits=False)(model, X, Y)


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        (lambda x: x[..., 0], "one row of at least two class scores.*\\(6, 4, 4\\) for 6 examples"),
        (lambda x: x[:3, 0, 0], "outputs of shape \\(3, 1\\) for 6 examples"),
        (lambda x: ops.concatenate([x[:, 0, 0], x[:, 0, 1] * NAN], 1), "finite outputs"),
    ],
)
def test_bad_outputs(outputs, message):
    with pytest.raises(ValueError, match=message):
        kr.attacks.PGD(0.1)(outputs, X, np.zeros(6, "int32"))


def test_a_nan_gradient_is_an_error():
    # The derivative of the square root at 0 is infinite, and its product with 0 is NaN.
    def outputs(x):
        z = ops.sqrt(ops.maximum(x[:, 0, 0, 0] - 0.5, 0.0) * 0.0)
        return ops.stack([z, -z], axis=1)

    with pytest.raises(ValueError, match="NaN or infinite"):
        kr.attacks.PGD(0.1, random_start=False, num_steps=2, norm="l2")(
            outputs, X, np.zeros(6, "int32")
        )


def test_a_model_without_a_gradient_is_an_error():
    if keras.backend.backend() != "tensorflow":
        pytest.skip("JAX gives a gradient of 0 for an operation that has none")
    with pytest.raises(ValueError, match="no gradient with respect to its input"):
        kr.attacks.PGD(0.1)(
            lambda x: ops.one_hot(ops.cast(x[:, 0, 0, 0] * 3, "int32"), 3) * 5.0, X, Y
        )


def test_a_compiled_function_must_pass_a_seed(model):
    attack = kr.attacks.PGD(0.1, num_steps=1)
    function = Classifier(model).compiled("no seed", lambda model, x: attack(model, x, Y))
    with pytest.raises(ValueError, match="`seed` must be given"):
        function(ops.convert_to_tensor(X))
    function = Classifier(model).compiled("seed", lambda model, x: attack(model, x, Y, seed=3))
    np.testing.assert_array_equal(
        ops.convert_to_numpy(function(ops.convert_to_tensor(X))),
        ops.convert_to_numpy(attack(model, X, Y, seed=3)),
    )


def test_the_base_class_says_what_to_implement(model):
    with pytest.raises(NotImplementedError, match="Attack must implement `generate`"):
        kr.attacks.Attack()(model, X, Y)
