"""The precision that results are computed in."""

from typing import Any

import keras

# The distance from 1 to the next number.
EPSILON = {"float64": 2.0**-52, "float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}


def working_dtype(dtype: Any) -> str:
    """float64 for float64; float32 for everything else, so that half precision is left.

    `keras.backend.result_type` has no float64 on JAX, where it may be switched on.
    """
    return "float64" if keras.backend.standardize_dtype(dtype) == "float64" else "float32"
