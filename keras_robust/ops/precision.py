"""The precision that results are computed in."""

from typing import Any

import keras


def working_dtype(dtype: Any) -> str:
    """float64 for float64; float32 for everything else, so that half precision is left.

    `keras.backend.result_type` has no float64 on JAX, where it may be switched on.
    """
    return "float64" if keras.backend.standardize_dtype(dtype) == "float64" else "float32"
