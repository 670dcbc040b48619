"""The projection to a hyperplane within bounds agrees with SciPy's solvers."""

import keras
import numpy as np
import pytest
from keras import ops
from scipy import optimize

from keras_robust.ops.hyperplane import to_hyperplane

BOUNDS = (-0.5, 1.0)
NORMS = ["linf", "l2", "l1"]


def problems(num=12, size=9, share=0.5, seed=0):
    """Returns points, some at the bounds, normals with zeros, and distances of both signs."""
    rng = np.random.default_rng(seed)
    x = rng.uniform(*BOUNDS, (num, size))
    x = np.where(rng.random(x.shape) < 0.3, rng.choice(BOUNDS, x.shape), x)
    w = rng.normal(size=x.shape) * np.exp(rng.normal(size=x.shape))
    w[rng.random(x.shape) < 0.2] = 0
    sign = np.where(np.arange(num) % 2 == 0, 1.0, -1.0)
    return x, w, share * sign * furthest(x, w, sign)


def furthest(x, w, sign):
    """Returns the maximum of `sign * <w, d>` within the bounds."""
    w = sign[:, None] * w
    return np.maximum(w * (BOUNDS[1] - x), w * (BOUNDS[0] - x)).sum(axis=1)


def steps(x, w, c, norm):
    """Returns the steps of the projection for images with 3 rows."""
    shape = (len(x), 3, -1, 1)
    as_images = (v.reshape(shape).astype("float32") for v in (x, w))
    d = to_hyperplane(*map(ops.convert_to_tensor, as_images), c.astype("float32"), norm, BOUNDS)
    return ops.convert_to_numpy(d).reshape(x.shape).astype("float64")


def in_bounds(x, d):
    return (x + d >= BOUNDS[0] - 1e-6).all() and (x + d <= BOUNDS[1] + 1e-6).all()


@pytest.mark.parametrize("share", [0.05, 0.5, 0.95])
def test_linf_agrees_with_linear_programming(share):
    x, w, c = problems(share=share)
    d = steps(x, w, c, "linf")
    np.testing.assert_allclose((w * d).sum(1), c, rtol=1e-5)
    assert in_bounds(x, d)
    size = x.shape[1]
    for i in range(len(x)):  # Minimizes t over (d, t), subject to -t <= d <= t.
        ones = np.ones((size, 1))
        result = optimize.linprog(
            np.append(np.zeros(size), 1.0),
            A_ub=np.block([[np.eye(size), -ones], [-np.eye(size), -ones]]),
            b_ub=np.zeros(2 * size),
            A_eq=np.append(w[i], 0)[None],
            b_eq=c[i : i + 1],
            bounds=[*((BOUNDS[0] - v, BOUNDS[1] - v) for v in x[i]), (0, None)],
        )
        assert result.status == 0
        np.testing.assert_allclose(abs(d[i]).max(), result.fun, rtol=1e-5)


@pytest.mark.parametrize("share", [0.05, 0.5, 0.95])
def test_l2_agrees_with_quadratic_programming(share):
    x, w, c = problems(share=share)
    d = steps(x, w, c, "l2")
    np.testing.assert_allclose((w * d).sum(1), c, rtol=1e-5)
    assert in_bounds(x, d)
    for i in range(len(x)):
        result = optimize.minimize(
            lambda v: v @ v,
            np.zeros(x.shape[1]),
            jac=lambda v: 2 * v,
            method="SLSQP",
            bounds=[(BOUNDS[0] - v, BOUNDS[1] - v) for v in x[i]],
            constraints={
                "type": "eq",
                "fun": lambda v, i=i: w[i] @ v - c[i],
                "jac": lambda v, i=i: w[i],
            },
            options={"ftol": 1e-14, "maxiter": 500},
        )
        assert result.success
        np.testing.assert_allclose(d[i], result.x, atol=2e-5)


@pytest.mark.parametrize("share", [0.05, 0.5, 0.95])
def test_l1_agrees_with_linear_programming(share):
    x, w, c = problems(share=share)
    w[:, 4] = w[:, 2]  # Either of two equal values may change.
    c = np.clip(c, *(0.99 * furthest(x, w, sign) * sign for sign in (-np.ones(12), np.ones(12))))
    d = steps(x, w, c, "l1")
    np.testing.assert_allclose((w * d).sum(1), c, rtol=1e-5)
    assert in_bounds(x, d)
    for i in range(len(x)):  # d is the difference of two nonnegative vectors.
        result = optimize.linprog(
            np.ones(2 * x.shape[1]),
            A_eq=np.append(w[i], -w[i])[None],
            b_eq=c[i : i + 1],
            bounds=[*((0, BOUNDS[1] - v) for v in x[i]), *((0, v - BOUNDS[0]) for v in x[i])],
        )
        assert result.status == 0
        np.testing.assert_allclose(abs(d[i]).sum(), result.fun, rtol=1e-5)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("size", [3, 3072])
@pytest.mark.parametrize("share", [1e-6, 0.3, 0.9999])
def test_reaches_the_hyperplane(norm, size, share):
    x, w, c = problems(64, size, share)
    d = steps(x, w, c, norm)
    np.testing.assert_allclose((w * d).sum(1), c, rtol=2e-5)
    assert in_bounds(x, d)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("share", [1.0, 1.5, 1e6])
def test_goes_to_the_nearest_corner_if_the_hyperplane_is_out_of_reach(norm, share):
    x, w, c = problems(share=share)
    w = np.where(abs(w) < 1e-2, 0, w)
    direction = np.sign(c[:, None] * w)
    corner = np.where(direction > 0, BOUNDS[1], BOUNDS[0])
    expected = np.where(direction == 0, 0, corner - x)
    np.testing.assert_allclose(steps(x, w, c, norm), expected, atol=1e-4)


@pytest.mark.parametrize("norm", NORMS)
def test_zero_distances_and_zero_normals_need_no_step(norm):
    x, w, c = problems()
    np.testing.assert_array_equal(steps(x, w, 0 * c, norm), 0)
    np.testing.assert_array_equal(steps(x, 0 * w, c, norm), 0)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("exponent", [-100, 100])
def test_the_length_of_the_normal_does_not_matter(norm, exponent):
    x, w, c = problems()
    scale = 2.0**exponent  # A power of 2 does not change the rounding.
    np.testing.assert_array_equal(steps(x, scale * w, scale * c, norm), steps(x, w, c, norm))


def test_float64():
    if keras.backend.backend() == "jax":
        pytest.skip("JAX computes in float32 unless its x64 mode is on")
    x, w, c = problems(size=100)
    for norm in NORMS:
        d = ops.convert_to_numpy(
            to_hyperplane(*map(ops.convert_to_tensor, (x, w, c)), norm, BOUNDS)
        )
        assert d.dtype == "float64"
        np.testing.assert_allclose((w * d).sum(1), c, rtol=1e-12)
