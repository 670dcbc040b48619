"""Recording of the calls of a model's layers while it runs."""

import contextlib
import contextvars
import dataclasses
from collections.abc import Iterator
from typing import Any

from keras_robust.model.layers import is_made_of_layers, named_layers
from keras_robust.model.patching import wrapped_call
from keras_robust.types import Model


@dataclasses.dataclass(frozen=True)
class LayerCall:
    """One call of a layer.

    Args:
        name: string, the layer's path. The second call of a layer has a suffix, as `"dense:1"`.
        layer: the layer.
        inputs: the first argument of the call.
        outputs: the value that the call returned.
        is_whole: bool, whether the layer is made of other layers, whose calls are recorded too.
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
def noted_calls(model: Model) -> Iterator[list[LayerCall]]:
    """Records the calls of a Keras model's layers.

    It yields a list, to which each call is added when it returns. A layer's name is its path in
    models and in layers that are made of layers, such as `"encoder/conv2d"`. The second call of a
    layer is `"dense:1"`. The layers of a `kr.RobustModel` are those of its `base_model`.

    Calls are recorded while the model runs, rather than read from a functional graph. Subclassed
    models therefore work too, if they hold their layers as attributes, in lists or in dicts.
    """
    model = getattr(model, "base_model", model)
    names = {id(layer): name for name, layer in named_layers(model).items()}
    calls: list[LayerCall] = []
    with contextlib.ExitStack() as stack:
        for layer in named_layers(model).values():
            stack.enter_context(wrapped_call(layer, _record))
        token = _names_and_calls.set((names, calls))
        stack.callback(_names_and_calls.reset, token)
        yield calls


def parts(calls: list[LayerCall]) -> list[LayerCall]:
    """Returns the calls of layers that are not made of other layers."""
    return [call for call in calls if not call.is_whole]


def _record(layer: Any, call: Any, *args: Any, **kwargs: Any) -> Any:
    outputs = call(*args, **kwargs)
    names, calls = _names_and_calls.get() or ({}, [])
    if id(layer) in names:
        name = names[id(layer)]
        number = sum(earlier.name.split(":")[0] == name for earlier in calls)
        inputs = args[0] if args else next(iter(kwargs.values()))
        name = f"{name}:{number}" if number else name
        calls.append(LayerCall(name, layer, inputs, outputs, is_made_of_layers(layer)))
    return outputs
