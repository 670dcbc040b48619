"""Finding a model's layers, and replacing what one does while a function is traced or run."""

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator
from typing import Any

import keras

_lock = threading.RLock()
# For each layer that is inside of `wrapped_call`: how many times, and what undoes it.
_wrapped: dict[tuple[int, Any], tuple[int, Callable[[], None]]] = {}


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
        undo = _replace(layer, name, value)
        try:
            yield
        finally:
            undo()


def _replace(layer: Any, name: str, value: Any) -> Callable[[], None]:
    """Sets an attribute; returns what sets it back."""
    own = name in vars(layer)
    before = getattr(layer, name)
    setattr(layer, name, value)
    return (lambda: setattr(layer, name, before)) if own else (lambda: delattr(layer, name))


@contextlib.contextmanager
def wrapped_call(layer: Any, wrapper: Callable[..., Any]) -> Iterator[None]:
    """Inside, a call of the layer is `wrapper(layer, call, ...)`; in all threads.

    Unlike `replaced` it may last over points at which threads wait for each other, as the
    replicas of `MirroredStrategy` do at a synchronized batch norm: they may be inside together,
    and the call is wrapped once.
    """
    key = (id(layer), wrapper)
    with _lock:
        if key in _wrapped:
            count, undo = _wrapped[key]
        else:
            call = layer.call
            wrapped = functools.wraps(call)(functools.partial(wrapper, layer, call))
            count, undo = 0, _replace(layer, "call", wrapped)
        _wrapped[key] = count + 1, undo
    try:
        yield
    finally:
        with _lock:
            count, undo = _wrapped.pop(key)
            if count > 1:
                _wrapped[key] = count - 1, undo
            else:
                undo()


@contextlib.contextmanager
def frozen_batch_norm(model: Any) -> Iterator[None]:
    """Inside, batch norm uses and keeps its moving statistics, in training mode too."""
    with contextlib.ExitStack() as stack:
        for layer in all_layers(model):
            if isinstance(layer, keras.layers.BatchNormalization):
                stack.enter_context(wrapped_call(layer, _in_inference))
        yield


def _in_inference(layer: Any, call: Any, inputs: Any, training: Any = None, **kwargs: Any) -> Any:
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
