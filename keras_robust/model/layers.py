"""The layers of a model, wherever they sit: in models, in other layers, in lists and dicts."""

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any, Protocol, runtime_checkable

import keras


@runtime_checkable
class HasSurrogate(Protocol):
    """A layer that attacks may differentiate through something else, as `kr.layers.WNLLHead`."""

    def attacked_as(self, surrogate: str | None = None) -> AbstractContextManager[bool]:
        """Makes the layer compute a surrogate; yields whether it differs from the output."""
        ...


@runtime_checkable
class Augments(Protocol):
    """A layer that transforms images at random in training, as `keras.layers.RandomFlip` does."""

    def get_random_transformation(self, data: Any, training: bool = True, seed: Any = None) -> Any:
        """Draws the transformation of a batch."""
        ...


class DependsOnBatch(Protocol):
    """A layer whose answer to one example depends on the others in its batch."""

    @property
    def depends_on_batch(self) -> bool:
        """Whether it does now."""
        ...


class HasSwitch(Protocol):
    """A layer that computes one of several things, as a variable says.

    A compiled function is built for one of them: `fixed_switch` is its number meanwhile, and `None`
    where the layer must look at the variable.
    """

    fixed_switch: int | None

    @property
    def switch(self) -> int:
        """The number of what the layer computes now."""
        ...


# Most attributes are none that hold layers.
_PLAIN = {bool, float, int, str, type(None)}


def all_layers(model: Any) -> list[Any]:
    """A model or callable, and all layers inside of it, each once, from the outside in."""
    found: dict[int, Any] = {}

    def visit(layer: Any) -> None:
        if id(layer) not in found:
            found[id(layer)] = layer
            for part in sublayers(layer):
                visit(part)

    visit(model)
    return list(found.values())


def sublayers(layer: Any) -> list[Any]:
    """The layers that a layer holds itself: a model's layers, then those among its attributes."""
    if not isinstance(layer, keras.layers.Layer):
        return []
    held = list(layer.layers) if isinstance(layer, keras.Model) else []
    if not isinstance(layer, keras.Sequential):  # It holds a functional model of the same layers.
        held += held_by(layer, keras.layers.Layer)
    return list({id(part): part for part in held if part is not layer}.values())


def held_by(layer: Any, kind: type) -> list[Any]:
    """The objects of a kind among a layer's attributes, also in lists, tuples, sets and dicts."""

    def among(values: Iterable[Any]) -> Iterator[Any]:
        for value in values:
            if type(value) in _PLAIN:
                continue
            if isinstance(value, kind):
                yield value
            elif isinstance(value, Mapping):
                yield from among(value.values())
            elif isinstance(value, list | tuple | set):
                yield from among(value)

    return list(among(vars(layer).values()))


def is_made_of_layers(layer: Any) -> bool:
    """Whether a layer does nothing but call others: a user's block, not one of Keras's or ours.

    Keras's own wrappers call their layers in loops, where nothing can be noted; a layer with
    weights of its own does more than its parts.
    """
    parts = sublayers(layer)
    if not parts or type(layer).__module__.partition(".")[0] in ("keras", "keras_robust"):
        return False
    theirs = {id(weight) for part in parts for weight in part.weights}
    return all(id(weight) in theirs for weight in layer.weights)


def named_layers(model: Any) -> dict[str, Any]:
    """The layers inside of a model, but for models, each once, by paths: `"encoder/conv2d"`.

    A layer that is made of layers comes with its parts.
    """
    found: dict[str, Any] = {}
    seen: set[int] = set()

    def visit(parts: list[Any], prefix: str) -> None:
        for part in parts:
            if id(part) in seen:
                continue
            seen.add(id(part))
            path = name = f"{prefix}{part.name}"
            is_model = isinstance(part, keras.Model)
            if not is_model:
                number = 1
                while name in found:
                    number += 1
                    name = f"{path}~{number}"
                found[name] = part
            if is_model or is_made_of_layers(part):
                visit(sublayers(part), f"{name}/")

    visit(sublayers(model) if isinstance(model, keras.Model) else [], "")
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
