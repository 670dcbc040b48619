"""What the layers of a model compute."""

import contextlib
import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_robust import backend, inference, validation
from keras_robust.evaluation.arrays import padded_batches
from keras_robust.layer_access import replaced
from keras_robust.layers import TanhClassifier


@dataclasses.dataclass(frozen=True)
class LayerCall:
    """One call of a layer: its first argument and what it returned."""

    name: str
    layer: Any
    inputs: Any
    outputs: Any


def layer_calls(model: Any, x: Any) -> list[LayerCall]:
    """Runs a Keras model in inference mode and notes the calls of its layers, in their order.

    Layers inside of models inside of the model go by their path, `"encoder/conv2d"`; the second
    call of a layer by `"dense:1"`. It is the calls that are noted, not a functional graph: this
    works for subclassed models too, as far as they use layers that they hold as attributes. For
    a `kr.RobustModel` the layers are those of its `base_model`.
    """
    model = getattr(model, "base_model", model)
    calls: list[LayerCall] = []
    with contextlib.ExitStack() as stack:
        for name, layer in _leaves(model):
            noted = functools.partial(_noted, calls, name, layer, layer.call)
            stack.enter_context(replaced(layer, "call", functools.wraps(layer.call)(noted)))
        inference.call(model, x)
    return calls


def _leaves(model: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The layers that are no models themselves, each once, with their paths."""
    seen = set()
    for layer in model.layers if isinstance(model, keras.Model) else []:
        if isinstance(layer, keras.Model):
            inner = _leaves(layer, f"{prefix}{layer.name}/")
        else:
            inner = iter([(prefix + layer.name, layer)])
        for name, leaf in inner:
            if id(leaf) not in seen:
                seen.add(id(leaf))
                yield name, leaf


def _noted(
    calls: list[LayerCall], name: str, layer: Any, call: Any, *args: Any, **kwargs: Any
) -> Any:
    outputs = call(*args, **kwargs)
    number = sum(earlier.name.split(":")[0] == name for earlier in calls)
    inputs = args[0] if args else next(iter(kwargs.values()))
    calls.append(LayerCall(f"{name}:{number}" if number else name, layer, inputs, outputs))
    return outputs


def call_names(model: Any, x: np.ndarray) -> list[str]:
    """The names of the calls that `layer_calls` notes, from a run on one example."""
    inference.build(model, x)
    calls = layer_calls(model, ops.convert_to_tensor(x[:1]))
    if not calls:
        raise ValueError(
            "No layers were found in argument `model`. It must be a Keras model that is made of "
            "layers: functional, sequential, or subclassed with its layers as attributes. "
            f"Received: model={model!r}"
        )
    return [call.name for call in calls]


def check_layer(layer: str, names: list[str]) -> str:
    """A name among those of the model's layers."""
    if layer not in names:
        raise ValueError(
            f"The model has no layer {layer!r} that it calls. Expected one of {names}. "
            f"Received: layer={layer!r}"
        )
    return layer


def features(model: Any, x: Any, layer: str | None = None, batch_size: int = 128) -> np.ndarray:
    """What a layer of a model computes for each image.

    By default this is what enters the last layer that has weights: the deep features between
    the network and its linear classifier, whether a softmax follows or not. Of
    `kr.layers.TanhClassifier`, they are what its activation makes of its input.

    Args:
        model: Keras model, `kr.RobustModel` (whose `base_model` is looked into).
        x: images, shape `(num_examples, ...)`.
        layer: string. Name of the layer whose output to give; a layer of a model inside of the
            model goes by its path, `"encoder/conv2d"`. Defaults to `None`: the input of the last
            layer that has weights.
        batch_size: int. Defaults to `128`.

    Returns:
        Float32 array, shape `(num_examples, ...)`.

    Raises:
        ValueError: if the model is not made of layers, or has no layer of that name, with the
            names that it has.

    Example:

    >>> import keras, numpy as np, keras_robust as kr
    >>> model = keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(5, name="hidden"),
    ...                           keras.layers.Dense(10)])
    >>> kr.evaluation.features(model, np.random.rand(32, 8, 8, 1), layer="hidden").shape
    (32, 5)

    Reference:

    - Wang et al., Adversarial Defense via Data Dependent Activation Function and Total Variation
      Minimization, section 4.1.3: "the 64D features from the layer before the softmax"
    """
    x = ops.convert_to_numpy(x)
    validation.check_images(x, None)
    batch_size = min(validation.check_count("batch_size", batch_size), len(x))
    names = call_names(model, x)
    if layer is not None:
        check_layer(layer, names)
    function = backend.compiled(
        model, ("features", layer), lambda model, x: _features(model, x, layer)
    )
    batches = [
        ops.convert_to_numpy(function(x[indices]))
        for indices in padded_batches(np.arange(len(x)), batch_size)
    ]
    return np.concatenate(batches)[: len(x)]


def _features(model: Any, x: Any, layer: str | None) -> Any:
    calls = layer_calls(model, x)
    if layer is None:
        with_weights = [call for call in calls if call.layer.weights]
        last = (with_weights or calls)[-1]
        is_tanh = isinstance(last.layer, TanhClassifier)
        value = last.layer.activate(last.inputs) if is_tanh else last.inputs
    else:
        value = next(call.outputs for call in calls if call.name == layer)
    return ops.cast(keras.tree.flatten(value)[0], "float32")
