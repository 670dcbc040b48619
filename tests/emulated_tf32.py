"""TF32 without a GPU: products of float32 matrices whose factors have 10 bits of mantissa."""

import functools

import keras
from keras import ops

from keras_robust import backend

# What multiplies matrices in `keras.ops`, of which the library's own code is made. Keras's layers
# call the functions of `keras.src`, so that networks keep their precision.
PRODUCTS = ("conv", "conv_transpose", "depthwise_conv", "dot", "einsum", "inner", "matmul")
PRODUCTS += ("outer", "separable_conv", "tensordot", "vdot")
_DROPPED_BITS = 13


def rounded(x):
    """`x` in float32 rounded to 10 bits of mantissa; other dtypes as they are."""
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
    """`x`: its gradient is a factor of the products of the pass backward."""
    return x, lambda *args, upstream=None: rounded(args[0] if upstream is None else upstream)


def emulated(function):
    """A product of `keras.ops` as a GPU computes it."""

    @functools.wraps(function)
    def multiply(*args, **kwargs):
        # A copy, since TensorFlow's custom gradients take no variables.
        args = [
            arg if isinstance(arg, str) else _factor(ops.copy(ops.convert_to_tensor(arg)))
            for arg in args
        ]
        return _product(function(*args, **kwargs))

    return multiply


def emulate(monkeypatch):
    """Until `monkeypatch` is undone, the library's products are those of a GPU."""
    for name in PRODUCTS:
        monkeypatch.setattr(ops, name, emulated(getattr(ops, name)))
    if keras.backend.backend() == "tensorflow":
        # `backend.matmul` takes the way that it takes on a GPU.
        monkeypatch.setattr(backend.tensorflow, "product_precision", lambda: "float16")
