"""A model, or any callable, in inference mode."""

from typing import Any

import keras
import numpy as np
from keras import ops

from keras_robust import backend


def call(model: Any, x: Any) -> Any:
    """The outputs of `model` on `x` with `training=False`, in float32 where they were lower."""
    is_layer = isinstance(model, keras.layers.Layer)
    outputs = model(x, training=False) if is_layer else model(x)
    if keras.backend.standardize_dtype(outputs.dtype) in ("float16", "bfloat16"):
        outputs = ops.cast(outputs, "float32")
    return outputs


def build(model: Any, x: Any) -> None:
    """Creates a Keras model's weights, which cannot be done while a function is compiled."""
    if isinstance(model, keras.layers.Layer) and not model.built:
        model(ops.convert_to_tensor(x[:1]), training=False)


def outputs(model: Any, x: np.ndarray) -> np.ndarray:
    """The outputs of `model` on one batch, by a function compiled once for each shape."""
    build(model, x)
    function = backend.compiled(model, "outputs", call)
    return ops.convert_to_numpy(function(ops.convert_to_tensor(x)))
