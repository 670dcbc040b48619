"""What the layers of a model compute while it runs."""

import contextlib
import contextvars
import dataclasses
from collections.abc import Iterator
from typing import Any

from keras_robust.model.patching import named_layers, wrapped_call


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
    model = getattr(model, "base_model", model)
    names = {id(layer): name for name, layer in named_layers(model).items()}
    calls: list[LayerCall] = []
    with contextlib.ExitStack() as stack:
        for layer in named_layers(model).values():
            stack.enter_context(wrapped_call(layer, _note))
        token = _names_and_calls.set((names, calls))
        stack.callback(_names_and_calls.reset, token)
        yield calls


def _note(layer: Any, call: Any, *args: Any, **kwargs: Any) -> Any:
    outputs = call(*args, **kwargs)
    names, calls = _names_and_calls.get() or ({}, [])
    if id(layer) in names:
        name = names[id(layer)]
        number = sum(earlier.name.split(":")[0] == name for earlier in calls)
        inputs = args[0] if args else next(iter(kwargs.values()))
        calls.append(LayerCall(f"{name}:{number}" if number else name, layer, inputs, outputs))
    return outputs
