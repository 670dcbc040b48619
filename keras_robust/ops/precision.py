"""The precision in which results are computed."""

from typing import Any

import keras

# The distance from 1 to the next number.
EPSILON = {"float64": 2.0**-52, "float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}


def working_dtype(dtype: Any) -> str:
    """Returns float64 for float64 and float32 for every other dtype, also for half precision.

    `keras.backend.result_type` never returns float64 on JAX, where float64 may be enabled.
    """
    return "float64" if keras.backend.standardize_dtype(dtype) == "float64" else "float32"
