"""The layers of a model at any depth: in models, in other layers, in lists and dicts."""

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any, Protocol, runtime_checkable

import keras

from keras_robust.types import Model, Seed


@runtime_checkable
class HasSurrogate(Protocol):
    """A layer that attacks may differentiate by a surrogate, like `kr.layers.WNLLHead`."""

    def attacked_as(self, surrogate: str | None = None) -> AbstractContextManager[bool]:
        """Makes the layer compute a surrogate. Yields whether the output differs from its own."""
        ...


@runtime_checkable
class Augments(Protocol):
    """A layer that transforms images at random in training, like `keras.layers.RandomFlip`."""

    def get_random_transformation(self, data: Any, training: bool = True, seed: Seed = None) -> Any:
        """Draws the transformation of a batch."""
        ...


class DependsOnBatch(Protocol):
    """A layer whose result for one example depends on the other examples in its batch."""

    @property
    def depends_on_batch(self) -> bool:
        """Whether the result depends on the batch in the layer's present state."""
        ...


class HasSwitch(Protocol):
    """A layer that computes one of several functions, selected by a variable.

    A compiled function is built for one of them. While it is traced, `fixed_switch` is the number
    of that one. Otherwise it is `None`, and the layer reads the variable.
    """

    fixed_switch: int | None

    @property
    def switch(self) -> int:
        """The number of the function that the layer computes now."""
        ...


# Types of most attributes. They hold no layers.
_PLAIN = {bool, float, int, str, type(None)}


def all_layers(model: Model) -> list[Any]:
    """Returns a model or callable and all layers inside it, each once, outermost first."""
    found: dict[int, Any] = {}

    def visit(layer: Any) -> None:
        if id(layer) not in found:
            found[id(layer)] = layer
            for part in sublayers(layer):
                visit(part)

    visit(model)
    return list(found.values())


def sublayers(layer: Any) -> list[Any]:
    """Returns the layers that a layer holds directly, in `layers` or among its attributes."""
    if not isinstance(layer, keras.layers.Layer):
        return []
    held = list(layer.layers) if isinstance(layer, keras.Model) else []
    # A `Sequential` also holds a functional model of the same layers.
    if not isinstance(layer, keras.Sequential):
        held += held_by(layer, keras.layers.Layer)
    return list({id(part): part for part in held if part is not layer}.values())


def held_by(layer: Any, kind: type) -> list[Any]:
    """Returns the objects of type `kind` among a layer's attributes.

    Those in lists, tuples, sets and dicts are included.
    """

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
    """Returns whether a layer only calls other layers, as a user's own block does.

    Layers of Keras and of this package do not count: Keras's wrappers call their layers in loops,
    where calls cannot be recorded. A layer with weights of its own does not count either, because
    it does more than its parts.
    """
    parts = sublayers(layer)
    if not parts or type(layer).__module__.partition(".")[0] in ("keras", "keras_robust"):
        return False
    weights_of_parts = {id(weight) for part in parts for weight in part.weights}
    return all(id(weight) in weights_of_parts for weight in layer.weights)


def named_layers(model: Model) -> dict[str, Any]:
    """Returns the layers inside a model, each once, by their paths: `"encoder/conv2d"`.

    Models are left out. A layer that is made of layers is included, and so are its parts.
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


def output_layer(model: Model) -> Any:
    """Returns the layer that computes the model's outputs; `None` if it is unknown."""
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
