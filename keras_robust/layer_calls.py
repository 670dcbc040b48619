"""What the layers of a model compute while it runs."""

import contextlib
import contextvars
import dataclasses
from collections.abc import Iterator
from typing import Any

import keras

from keras_robust.layer_access import wrapped_call


@dataclasses.dataclass(frozen=True)
class LayerCall:
    """One call of a layer: its first argument and what it returned."""

    name: str
    layer: Any
    inputs: Any
    outputs: Any


# A context variable, because the replicas of `MirroredStrategy` run the same layers in threads
# that interleave.
_names_and_calls: contextvars.ContextVar[tuple[dict[int, str], list[LayerCall]] | None] = (
    contextvars.ContextVar("names_and_calls", default=None)
)


@contextlib.contextmanager
def noted_calls(model: Any) -> Iterator[list[LayerCall]]:
    """Inside, the calls of a Keras model's layers are noted, in their order, in the list yielded.

    Layers inside of models inside of the model go by their path, `"encoder/conv2d"`; the second
    call of a layer by `"dense:1"`. It is the calls that are noted, not a functional graph: this
    works for subclassed models too, as far as they use layers that they hold as attributes. For
    a `kr.RobustModel` the layers are those of its `base_model`.
    """
    leaves = list(_leaves(getattr(model, "base_model", model)))
    calls: list[LayerCall] = []
    with contextlib.ExitStack() as stack:
        for _, layer in leaves:
            stack.enter_context(wrapped_call(layer, _note))
        token = _names_and_calls.set(({id(layer): name for name, layer in leaves}, calls))
        stack.callback(_names_and_calls.reset, token)
        yield calls


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


def _note(layer: Any, call: Any, *args: Any, **kwargs: Any) -> Any:
    outputs = call(*args, **kwargs)
    names, calls = _names_and_calls.get() or ({}, [])
    if id(layer) in names:
        name = names[id(layer)]
        number = sum(earlier.name.split(":")[0] == name for earlier in calls)
        inputs = args[0] if args else next(iter(kwargs.values()))
        calls.append(LayerCall(f"{name}:{number}" if number else name, layer, inputs, outputs))
    return outputs
