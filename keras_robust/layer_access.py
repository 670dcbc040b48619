"""Finding a model's layers, and replacing what one does while a function is compiled."""

import contextlib
import functools
import threading
from collections.abc import Iterator
from typing import Any

import keras

_lock = threading.RLock()


def all_layers(model: Any) -> list[Any]:
    """The layers of a model and of the models inside of it."""
    layers = []
    for layer in getattr(model, "layers", []):
        layers += [layer, *all_layers(layer)]
    return layers


def named_layers(model: Any, prefix: str = "") -> dict[str, Any]:
    """The layers that are no models themselves, each once, by their paths: `"encoder/conv2d"`."""
    found: dict[str, Any] = {}
    for layer in model.layers if isinstance(model, keras.Model) else []:
        if isinstance(layer, keras.Model):
            inner = named_layers(layer, f"{prefix}{layer.name}/")
        else:
            inner = {prefix + layer.name: layer}
        known = {id(layer) for layer in found.values()}
        found.update({name: leaf for name, leaf in inner.items() if id(leaf) not in known})
    return found


def output_layer(model: Any) -> Any:
    """The layer that the model's outputs come from; `None` where that cannot be told."""
    if hasattr(model, "base_model"):
        return output_layer(model.base_model)
    if isinstance(model, keras.Sequential):
        return output_layer(model.layers[-1]) if model.layers else None
    if isinstance(model, keras.Model):
        outputs = getattr(model, "outputs", None) or []
        for layer in model.layers if len(outputs) == 1 else []:
            with contextlib.suppress(AttributeError, ValueError):
                if layer.output is outputs[0]:
                    return output_layer(layer)
        return None
    return model if isinstance(model, keras.layers.Layer) else None


@contextlib.contextmanager
def replaced(layer: Any, name: str, value: Any) -> Iterator[None]:
    """Inside, the attribute `name` of a layer is `value`. One thread at a time."""
    with _lock:
        own = name in vars(layer)
        before = getattr(layer, name)
        setattr(layer, name, value)
        try:
            yield
        finally:
            if own:
                setattr(layer, name, before)
            else:
                delattr(layer, name)


@contextlib.contextmanager
def frozen_batch_norm(model: Any) -> Iterator[None]:
    """Inside, batch norm uses and keeps its moving statistics, in training mode too."""
    with contextlib.ExitStack() as stack:
        for layer in all_layers(model):
            if isinstance(layer, keras.layers.BatchNormalization):
                frozen = functools.partial(_in_inference, layer.call)
                stack.enter_context(replaced(layer, "call", functools.wraps(layer.call)(frozen)))
        yield


def _in_inference(call: Any, inputs: Any, training: Any = None, **kwargs: Any) -> Any:
    return call(inputs, training=False, **kwargs)


@contextlib.contextmanager
def without_softmax(model: Any) -> Iterator[bool]:
    """Inside, a softmax that ends the model is left out. Gives whether one was found."""
    layer = output_layer(model)
    if isinstance(layer, keras.layers.Softmax):
        with replaced(layer, "call", lambda inputs, mask=None: inputs):
            yield True
    elif getattr(layer, "activation", None) is keras.activations.softmax:
        with replaced(layer, "activation", keras.activations.linear):
            yield True
    else:
        yield False


@contextlib.contextmanager
def attacked_as(model: Any, surrogate: str | None = None) -> Iterator[bool]:
    """Inside, layers that have a surrogate compute it; gives whether the output is another."""
    layers = [layer for layer in [model, *all_layers(model)] if hasattr(layer, "attacked_as")]
    with contextlib.ExitStack() as stack:
        differs = [stack.enter_context(layer.attacked_as(surrogate)) for layer in layers]
        yield any(differs)
