"""Layers that compute one of several things: compiled functions are built for one of them."""

import contextvars
from collections.abc import Callable
from typing import Any

from keras_robust.backend.scope import scope
from keras_robust.model.patching import all_layers

_fixed: contextvars.ContextVar[dict[int, int] | None] = contextvars.ContextVar(
    "fixed_switches", default=None
)


def switches(model: Any) -> tuple[int, ...]:
    """How the switches of a model's layers stand: the attribute `switch` of those that have one."""
    return tuple(layer.switch for layer in _switched(model))


def fixed(function: Callable[..., Any], positions: tuple[int, ...]) -> Callable[..., Any]:
    """`function(model, ...)`, in which the switches of the model's layers stand like this.

    Such a layer asks `fixed_switch` and builds what it computes then, and nothing else.
    """

    def run(model: Any, *args: Any) -> Any:
        layers = _switched(model)
        stands = {id(layer): value for layer, value in zip(layers, positions, strict=True)}
        with scope(_fixed, stands):
            return function(model, *args)

    return run if positions else function


def fixed_switch(layer: Any) -> int | None:
    """How the layer's switch stands in the function under construction; `None` if it may change."""
    return (_fixed.get() or {}).get(id(layer))


def _switched(model: Any) -> list[Any]:
    return [layer for layer in [model, *all_layers(model)] if hasattr(type(layer), "switch")]
