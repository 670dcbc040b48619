"""WNLL, the angular penalty and Parseval steps compute in float32 on half precision inputs.

The expected values are computed in float64 from the rounded inputs.
"""

import pathlib
import runpy

import keras
import ml_dtypes
import numpy as np
import pytest
from keras import ops

import keras_robust as kr
from keras_robust import backend

REFERENCE = runpy.run_path(str(pathlib.Path(__file__).with_name("reference_wnll.py")))
RNG = np.random.default_rng(0)
QUERIES, TEMPLATE = (RNG.normal(size=(n, 4)) for n in (7, 20))
LABELS = np.arange(20) % 3
KERNEL = RNG.normal(size=(9, 5))
half_precision = pytest.mark.parametrize(
    "dtype", [np.dtype("float16"), np.dtype(ml_dtypes.bfloat16)], ids=str
)


def array(x, dtype="float64"):
    return ops.convert_to_numpy(x).astype(dtype)


@half_precision
@pytest.mark.parametrize("joint", [True, False])
def test_wnll(dtype, joint):
    # Points far from the origin in float16: squares overflow, and differences lose most digits.
    queries, template = ((100 * x + 1000).astype(dtype) for x in (QUERIES, TEMPLATE))
    u = kr.ops.wnll(queries, template, LABELS, 6, joint=joint)
    assert keras.backend.standardize_dtype(u.dtype) == "float32"
    values = np.eye(3)[LABELS]
    expected = REFERENCE["wnll"](queries, template, values, 6, 3, joint=joint)
    np.testing.assert_allclose(array(u), expected, atol=2e-5)


@half_precision
@pytest.mark.parametrize(("norm", "order"), [("frobenius", "fro"), ("spectral", 2)])
def test_the_angular_penalty(dtype, norm, order):
    kernel = (50 * KERNEL).astype(dtype)
    penalty = kr.regularizers.AngularPenalty(100.0, 30.0, norm)
    value = penalty(ops.convert_to_tensor(kernel))
    assert keras.backend.standardize_dtype(value.dtype) == "float32"
    rows = kernel.T.astype("float64")
    gram = np.full((5, 5), -900 / 4)
    np.fill_diagonal(gram, 900)
    expected = 100 * np.linalg.norm(rows @ rows.T - gram, order)
    assert expected > 65504
    np.testing.assert_allclose(float(value), expected, rtol=1e-5)
    gradient = backend.input_gradient(penalty, ops.convert_to_tensor(kernel))
    assert np.isfinite(array(gradient)).all()


@half_precision
def test_the_parseval_step_is_rounded_once(dtype):
    kernel = KERNEL.astype(dtype)
    found = kr.constraints.ParsevalTightness(0.1, 1.0)(ops.convert_to_tensor(kernel))
    assert keras.backend.standardize_dtype(found.dtype) == dtype.name
    rows = kernel.T.astype("float64")
    expected = (1.1 * rows - 0.1 * rows @ rows.T @ rows).T
    half_unit = float(ml_dtypes.finfo(dtype).eps) / 2
    np.testing.assert_allclose(array(found), expected, rtol=1.001 * half_unit, atol=1e-5)
