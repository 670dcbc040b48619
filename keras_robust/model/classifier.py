"""A model, or any callable, in inference mode."""

from typing import Any

import keras
import numpy as np
from keras import ops

from keras_robust import backend, validation
from keras_robust.model.patching import all_layers, without_softmax
from keras_robust.ops.logits import probabilities_to_logits

# Outputs are looked at on so many images.
_NUM_PROBED = 8


def call(model: Any, x: Any) -> Any:
    """The outputs of `model` on `x` with `training=False`, in float32 where they were lower."""
    is_layer = isinstance(model, keras.layers.Layer)
    outputs = model(x, training=False) if is_layer else model(x)
    if keras.backend.standardize_dtype(outputs.dtype) in ("float16", "bfloat16"):
        outputs = ops.cast(outputs, "float32")
    return outputs


def logits(model: Any, x: Any, from_logits: bool) -> Any:
    """What `call` returns, as logits.

    A saturated softmax has lost them: its outputs are exactly 0 and 1 and its gradient is 0.
    Where the softmax is the last thing that a Keras model does, it is left out; elsewhere (a
    callable, a subclassed model) the logarithm of the probabilities is taken.
    """
    if from_logits:
        return call(model, x)
    with without_softmax(model) as left_out:
        outputs = call(model, x)
    return outputs if left_out else probabilities_to_logits(outputs)


def check(
    model: Any, x: np.ndarray, y: np.ndarray, bounds: tuple[float, float] | None, from_logits: bool
) -> int:
    """Raises a `ValueError` for images, labels or outputs that no classifier can have.

    Returns:
        The number of classes.
    """
    validation.check_images(x, bounds)
    probe = x[:_NUM_PROBED]
    found = outputs(model, probe)
    validation.check_outputs(found, len(probe), from_logits)
    validation.check_labels(y, len(x), found.shape[1])
    return found.shape[1]


def takes_any_batch_size(model: Any) -> bool:
    """Whether a function of the model that is compiled once takes batches of every size."""
    return backend.DYNAMIC_BATCH and isinstance(model, keras.layers.Layer)


def depends_on_batch(model: Any) -> bool:
    """Whether the answer to one example depends on the others in its batch, as a layer may say."""
    layers = [model, *all_layers(model)]
    return any(getattr(layer, "depends_on_batch", False) for layer in layers)


def random_state(model: Any) -> list[Any]:
    """The states of a Keras model's seed generators: what dropout and noise layers draw from."""
    if not isinstance(model, keras.layers.Layer):
        return []
    return [v for v in model.non_trainable_variables if v.name == "seed_generator_state"]


def build(model: Any, x: Any) -> None:
    """Creates a Keras model's weights, which cannot be done while a function is compiled."""
    if isinstance(model, keras.layers.Layer) and not model.built:
        model(ops.convert_to_tensor(x[:1]), training=False)


def outputs(model: Any, x: np.ndarray, seed: int = 0) -> np.ndarray:
    """The outputs of `model` on one batch, by a function compiled once.

    A random model draws from `seed`, and its own generators stay as they are.
    """
    build(model, x)
    function = backend.compiled(
        model, "outputs", _seeded_call, num_batched=int(takes_any_batch_size(model))
    )
    return ops.convert_to_numpy(function(ops.convert_to_tensor(x), backend.make_seed(seed)))


def _seeded_call(model: Any, x: Any, seed: Any) -> Any:
    with backend.seeded(random_state(model), seed):
        return call(model, x)
