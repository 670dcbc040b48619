"""The library's own matrix products have full precision, although GPUs use TF32."""

import keras
import numpy as np
import pytest
from emulated_tf32 import emulate
from keras import ops

import keras_robust as kr
from keras_robust import backend

pytestmark = pytest.mark.gpu

RNG = np.random.default_rng(0)
A, B = RNG.normal(size=(30, 200)).astype("float32"), RNG.normal(size=(200, 20)).astype("float32")
QUERIES, TEMPLATE = (RNG.normal(size=(n, 6)).astype("float32") + 3 for n in (20, 60))
LABELS = np.arange(60) % 3
jax_only = pytest.mark.skipif(keras.backend.backend() != "jax", reason="inspects JAX's jaxprs")


def product_and_gradient(multiply):
    """Returns the product A B, and the gradient of `sum((A B)^3)` with respect to A."""
    return backend.value_and_gradient(
        lambda a: (ops.sum(multiply(a, ops.convert_to_tensor(B)) ** 3), multiply(a, B)),
        ops.convert_to_tensor(A),
    )


def errors(multiply):
    """Returns the largest errors of the product and the gradient, relative to the largest entry."""
    product = A.astype("float64") @ B
    expected = product, 3 * product**2 @ B.T
    return [
        abs(ops.convert_to_numpy(found) - true).max() / abs(true).max()
        for found, true in zip(product_and_gradient(multiply), expected, strict=True)
    ]


@pytest.mark.usefixtures("tf32")
def test_the_emulation_has_10_bits():
    for error in errors(ops.matmul):
        assert 2**-15 < error < 2**-9


@pytest.mark.usefixtures("tf32")
def test_a_product_of_the_backend_has_full_precision():
    for error in errors(backend.matmul):
        assert error < 2**-20


@pytest.mark.parametrize("dtype", ["float64", "float16"])
def test_a_product_has_the_dtype_of_its_factors(dtype, double_precision):
    product = backend.matmul(A.astype(dtype), B.astype(dtype))
    assert keras.backend.standardize_dtype(product.dtype) == dtype


@pytest.mark.slow_on_jax
@pytest.mark.parametrize("joint", [True, False])
def test_wnll_does_not_depend_on_tf32(joint, monkeypatch):
    def outputs():
        u = kr.ops.wnll(QUERIES, TEMPLATE, LABELS, 8, joint=joint)
        return ops.convert_to_numpy(u)

    expected = outputs()
    emulate(monkeypatch)
    np.testing.assert_allclose(outputs(), expected, atol=1e-5)


def products(jaxpr):
    """Yields the products in a jaxpr and in nested jaxprs."""
    for equation in jaxpr.eqns:
        if equation.primitive.name in ("dot_general", "conv_general_dilated"):
            yield equation
        for value in equation.params.values():
            for part in value if isinstance(value, list | tuple) else [value]:
                inner = getattr(part, "jaxpr", part)
                if hasattr(inner, "eqns"):
                    yield from products(inner)


@jax_only
@pytest.mark.parametrize("joint", [True, False])
def test_all_products_of_wnll_have_the_highest_precision(joint):
    import jax

    def first(queries):
        u = kr.ops.wnll(queries, TEMPLATE, LABELS, 8, joint=joint, num_classes=3)
        return ops.sum(u[:, 0])

    found = list(products(jax.make_jaxpr(jax.value_and_grad(first))(QUERIES).jaxpr))
    assert found
    for equation in found:
        assert equation.params["precision"] == (jax.lax.Precision.HIGHEST,) * 2
