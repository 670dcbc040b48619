"""Emulates TF32 without a GPU: factors of float32 products have 10 bits of mantissa."""

import functools

import keras
from keras import ops

from keras_robust import backend

# The products in `keras.ops`, which the library's own code uses. Keras's layers call the functions
# of `keras.src`, so that networks keep their precision.
PRODUCTS = ("conv", "conv_transpose", "depthwise_conv", "dot", "einsum", "inner", "matmul")
PRODUCTS += ("outer", "separable_conv", "tensordot", "vdot")
_DROPPED_BITS = 13


def rounded(x):
    """Rounds float32 `x` to 10 bits of mantissa. Other dtypes are not changed."""
    if keras.backend.standardize_dtype(x.dtype) != "float32":
        return x
    bits = ops.view(x, "int32")
    half = 1 << (_DROPPED_BITS - 1)
    return ops.view(ops.bitwise_and(bits + half, -(1 << _DROPPED_BITS)), "float32")


@ops.custom_gradient
def _factor(x):
    return rounded(x), lambda *args, upstream=None: args[0] if upstream is None else upstream


@ops.custom_gradient
def _product(x):
    """Returns `x`, and rounds its gradient, a factor of the products of the backward pass."""
    return x, lambda *args, upstream=None: rounded(args[0] if upstream is None else upstream)


def emulated(function):
    """Returns the product `function` of `keras.ops` as a GPU computes it."""

    @functools.wraps(function)
    def multiply(*args, **kwargs):
        # Copies, because TensorFlow's custom gradients do not take variables.
        args = [
            arg if isinstance(arg, str) else _factor(ops.copy(ops.convert_to_tensor(arg)))
            for arg in args
        ]
        return _product(function(*args, **kwargs))

    return multiply


def emulate(monkeypatch):
    """Emulates the library's products on a GPU until `monkeypatch` is undone."""
    for name in PRODUCTS:
        monkeypatch.setattr(ops, name, emulated(getattr(ops, name)))
    if keras.backend.backend() == "tensorflow":
        # `backend.matmul` then runs its code for GPUs.
        monkeypatch.setattr(backend.tensorflow, "product_precision", lambda: "float16")
