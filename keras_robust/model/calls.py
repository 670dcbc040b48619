"""What the layers of a model compute while it runs."""

import contextlib
import contextvars
import dataclasses
from collections.abc import Iterator
from typing import Any

from keras_robust.model.layers import is_made_of_layers, named_layers
from keras_robust.model.patching import wrapped_call


@dataclasses.dataclass(frozen=True)
class LayerCall:
    """One call of a layer.

    Args:
        name: string, the layer's path; of its second call `"dense:1"`.
        layer: the layer.
        inputs: its first argument.
        outputs: what it returned.
        is_whole: bool, whether it is a layer that is made of layers, whose calls are noted too.
    """

    name: str
    layer: Any
    inputs: Any
    outputs: Any
    is_whole: bool = False


# A context variable, because the replicas of `MirroredStrategy` run the same layers in threads
# that interleave.
_names_and_calls: contextvars.ContextVar[tuple[dict[int, str], list[LayerCall]] | None] = (
    contextvars.ContextVar("names_and_calls", default=None)
)


@contextlib.contextmanager
def noted_calls(model: Any) -> Iterator[list[LayerCall]]:
    """Notes the calls of a Keras model's layers, as they return, in the list that it yields.

    Layers go by their path, `"encoder/conv2d"`, in models and in layers that are made of layers;
    the second call of a layer is `"dense:1"`. It is the calls that are noted, not a functional
    graph: this works for subclassed models too, as far as they use layers that they hold as
    attributes, in lists or in dicts. For a `kr.RobustModel` the layers are those of its
    `base_model`.
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


def parts(calls: list[LayerCall]) -> list[LayerCall]:
    """The calls of layers that are not made of others."""
    return [call for call in calls if not call.is_whole]


def _note(layer: Any, call: Any, *args: Any, **kwargs: Any) -> Any:
    outputs = call(*args, **kwargs)
    names, calls = _names_and_calls.get() or ({}, [])
    if id(layer) in names:
        name = names[id(layer)]
        number = sum(earlier.name.split(":")[0] == name for earlier in calls)
        inputs = args[0] if args else next(iter(kwargs.values()))
        name = f"{name}:{number}" if number else name
        calls.append(LayerCall(name, layer, inputs, outputs, is_made_of_layers(layer)))
    return outputs
