"""The angular penalty agrees with NumPy and finite differences."""

import keras
import numpy as np
import pytest
from keras import ops

import keras_robust as kr
from keras_robust import backend
from keras_robust.ops.simplex import simplex_gram

pytestmark = pytest.mark.gpu

NORMS = {"frobenius": "fro", "spectral": 2}


def simplex_kernel(num_classes, features, scale):
    """Returns weights at the vertices of a regular simplex, shape (features, num_classes)."""
    eigenvalues, eigenvectors = np.linalg.eigh(simplex_gram(num_classes, scale))
    kernel = np.zeros((features, num_classes))
    root = (eigenvectors * np.sqrt(np.maximum(eigenvalues, 0))).T[1:]
    kernel[: num_classes - 1] = root
    return kernel.astype("float32")


@pytest.mark.parametrize("norm", NORMS)
def test_value_agrees_with_numpy(norm):
    kernel = np.random.default_rng(0).normal(size=(6, 4)).astype("float32")
    gram = np.full((4, 4), 0.25 / -3) + np.eye(4) * (0.25 + 0.25 / 3)
    expected = 7 * np.linalg.norm(kernel.T.astype("float64") @ kernel - gram, NORMS[norm])
    value = kr.regularizers.AngularPenalty(7.0, 0.5, norm)(ops.convert_to_tensor(kernel))
    np.testing.assert_allclose(float(value), expected, rtol=1e-5)


@pytest.mark.parametrize("norm", NORMS)
def test_gradient_agrees_with_finite_differences(norm):
    rng = np.random.default_rng(1)
    kernel, direction = (rng.normal(size=(6, 4)).astype("float32") for _ in range(2))
    penalty = kr.regularizers.AngularPenalty(1.0, 0.5, norm)
    gradient = backend.input_gradient(penalty, ops.convert_to_tensor(kernel))

    def value(step):
        moved = kernel.astype("float64") + step * direction
        return np.linalg.norm(moved.T @ moved - simplex_gram(4, 0.5), NORMS[norm])

    expected = (value(1e-6) - value(-1e-6)) / 2e-6
    np.testing.assert_allclose(
        np.sum(ops.convert_to_numpy(gradient) * direction), expected, rtol=1e-4
    )


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("features", [9, 12])
def test_a_simplex_has_no_penalty_and_a_finite_gradient(norm, features):
    kernel = ops.convert_to_tensor(simplex_kernel(10, features, 0.1))
    penalty = kr.regularizers.AngularPenalty(100.0, 0.1, norm)
    assert float(penalty(kernel)) < 1e-4
    assert bool(ops.all(ops.isfinite(backend.input_gradient(penalty, kernel))))
    zero = kr.regularizers.AngularPenalty(100.0, 1e-30, norm)
    gradient = backend.input_gradient(zero, ops.zeros((12, 10)))
    np.testing.assert_array_equal(ops.convert_to_numpy(gradient), 0)


@pytest.mark.parametrize("norm", NORMS)
def test_training_maximizes_the_angles(norm):
    layer = keras.layers.Dense(
        4, use_bias=False, kernel_regularizer=kr.regularizers.AngularPenalty(1.0, 0.5, norm)
    )
    model = keras.Sequential([keras.Input((6,)), layer])
    schedule = keras.optimizers.schedules.CosineDecay(0.05, 400)
    model.compile(optimizer=keras.optimizers.Adam(schedule), loss=lambda y, z: 0.0 * z)
    model.fit(np.zeros((400, 6)), np.zeros((400, 4)), batch_size=1, verbose=0)
    kernel = ops.convert_to_numpy(layer.kernel)
    lengths = np.linalg.norm(kernel, axis=0)
    np.testing.assert_allclose(lengths, 0.5, atol=0.01)
    cosines = (kernel.T @ kernel / np.outer(lengths, lengths))[~np.eye(4, dtype=bool)]
    np.testing.assert_allclose(cosines, -1 / 3, atol=0.02)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"penalty": -1.0}, "`penalty`.*at least 0"),
        ({"penalty": float("nan")}, "`penalty`"),
        ({"scale": 0.0}, "`scale`.*greater than 0"),
        ({"norm": "l1"}, "`norm`.*'frobenius', 'spectral'.*Received: norm='l1'"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        kr.regularizers.AngularPenalty(**arguments)


@pytest.mark.parametrize("shape", [(3, 3, 4), (5, 1), (3, 5)])
def test_kernels_without_a_simplex_are_an_error(shape):
    with pytest.raises(ValueError, match="at most `features \\+ 1`"):
        kr.regularizers.AngularPenalty()(ops.zeros(shape))
