"""Temporary replacement of what a layer does, while a function is traced or run."""

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator
from typing import Any

import keras
from keras import ops

from keras_robust import backend
from keras_robust.model.layers import HasSurrogate, HasSwitch, all_layers, output_layer
from keras_robust.types import Model

_lock = threading.RLock()
# For each layer and wrapper: the number of open `wrapped_call` contexts, and a function that undoes
# the wrapping.
_wrapped: dict[tuple[int, Any], tuple[int, Callable[[], None]]] = {}


@contextlib.contextmanager
def replaced(layer: Any, name: str, value: Any) -> Iterator[None]:
    """Sets the attribute `name` of a layer to `value` and restores it. One thread at a time."""
    with _lock:
        undo = _replace(layer, name, value)
        try:
            yield
        finally:
            undo()


def _replace(layer: Any, name: str, value: Any) -> Callable[[], None]:
    """Sets an attribute, and returns a function that restores it."""
    own = name in vars(layer)
    before = getattr(layer, name)
    setattr(layer, name, value)
    return (lambda: setattr(layer, name, before)) if own else (lambda: delattr(layer, name))


@contextlib.contextmanager
def wrapped_call(layer: Any, wrapper: Callable[..., Any]) -> Iterator[None]:
    """Replaces each call of the layer by `wrapper(layer, call, ...)`, in all threads.

    Unlike `replaced`, several threads may use it at the same time; the call is wrapped only once.
    The context may therefore last over points at which threads wait for each other, as the replicas
    of `MirroredStrategy` do at a synchronized batch norm.
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
def frozen_batch_norm(model: Model) -> Iterator[None]:
    """Makes batch norm use its moving statistics, without updates, in training too."""
    with contextlib.ExitStack() as stack:
        for layer in all_layers(model):
            if isinstance(layer, keras.layers.BatchNormalization):
                stack.enter_context(wrapped_call(layer, _in_inference))
        yield


def _in_inference(layer: Any, call: Any, inputs: Any, training: Any = None, **kwargs: Any) -> Any:
    return call(inputs, training=False, **kwargs)


def final_activation(model: Model) -> str | None:
    """Returns `"softmax"`, `"sigmoid"` or `"linear"`, the activation of the model's last layer.

    Returns `None` if it is unknown: a layer without weights may pass on the outputs of a softmax.
    """
    layer = output_layer(model)
    if isinstance(layer, keras.layers.Softmax):
        return "softmax"
    activation = getattr(layer, "activation", None)
    for name in ("softmax", "sigmoid"):
        if activation is getattr(keras.activations, name):
            return name
    is_linear = activation is keras.activations.linear and bool(layer.weights)
    return "linear" if is_linear else None


@contextlib.contextmanager
def without_final_activation(model: Model) -> Iterator[bool]:
    """Removes a softmax or sigmoid at the model's end. Yields whether there is one."""
    layer = output_layer(model)
    if final_activation(model) not in ("softmax", "sigmoid"):
        yield False
    elif isinstance(layer, keras.layers.Softmax):
        with replaced(layer, "call", lambda inputs, mask=None: inputs):
            yield True
    else:
        with replaced(layer, "activation", keras.activations.linear):
            yield True


@contextlib.contextmanager
def convolutions_for_loops(layers: list[Any]) -> Iterator[None]:
    """Replaces convolutions by ones that are fast in loops, if the backend needs it."""
    convolve = backend.convolution_for_loops()
    with contextlib.ExitStack() as stack:
        if convolve is not None:
            for layer in filter(_is_plain_convolution, layers):
                convolution_op = functools.partial(_convolution_op, layer, convolve)
                stack.enter_context(replaced(layer, "convolution_op", convolution_op))
        yield


def _is_plain_convolution(layer: Any) -> bool:
    kinds = (keras.layers.Conv1D, keras.layers.Conv2D, keras.layers.Conv3D)
    return (
        getattr(type(layer), "convolution_op", None) in [kind.convolution_op for kind in kinds]
        and layer.groups == 1
        and layer.padding in ("same", "valid")
        and layer.data_format == "channels_last"
    )


def _convolution_op(layer: Any, convolve: Callable[..., Any], inputs: Any, kernel: Any) -> Any:
    kernel = ops.convert_to_tensor(kernel)
    inputs = ops.convert_to_tensor(inputs, kernel.dtype)
    return convolve(inputs, kernel, layer.strides, layer.padding.upper(), layer.dilation_rate)


@contextlib.contextmanager
def attacked_as(model: Model, surrogate: str | None = None) -> Iterator[bool]:
    """Makes layers with a surrogate compute it. Yields whether any of their outputs differs."""
    layers = [layer for layer in all_layers(model) if isinstance(layer, HasSurrogate)]
    with contextlib.ExitStack() as stack:
        differs = [stack.enter_context(layer.attacked_as(surrogate)) for layer in layers]
        yield any(differs)


@contextlib.contextmanager
def fixed_switches(layers: list[HasSwitch], positions: tuple[int, ...]) -> Iterator[None]:
    """Fixes the switches of layers at `positions`, one for each layer."""
    with contextlib.ExitStack() as stack:
        for layer, position in zip(layers, positions, strict=True):
            stack.enter_context(replaced(layer, "fixed_switch", position))
        yield
