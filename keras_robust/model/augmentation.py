"""Augmentation layers inside a model that is trained on adversarial examples."""

import contextlib
import contextvars
import itertools
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any

import keras
from keras import ops

from keras_robust import backend
from keras_robust.backend.scope import scope
from keras_robust.model.layers import Augments, all_layers, held_by
from keras_robust.model.patching import replaced, wrapped_call
from keras_robust.types import Images, Model, Seed

# The seed of each layer, by the layer's id. A context variable, because the replicas of
# `MirroredStrategy` share the layers and run in threads that interleave, each with its own seed.
_seeds: contextvars.ContextVar[dict[int, Any] | None] = contextvars.ContextVar(
    "augmentation_seeds", default=None
)
# The number of copies of the images in a batch. The copies follow each other.
_copies: contextvars.ContextVar[int | None] = contextvars.ContextVar("copies", default=None)


@contextlib.contextmanager
def same_augmentation(model: Model, seed: Seed) -> Iterator[None]:
    """Makes each augmentation layer transform a batch in the same way at every call.

    The layers transform images in inference mode too, so that an attack optimizes the images that
    the training step sees. Their draws are derived from `seed`. Their own generators keep their
    state.
    """
    layers = [layer for layer in all_layers(model) if isinstance(layer, Augments)]
    seeds = {id(layer): backend.fold_in(seed, number) for number, layer in enumerate(layers)}
    with contextlib.ExitStack() as stack:
        stack.enter_context(scope(_seeds, seeds))
        for layer in layers:
            stack.enter_context(wrapped_call(layer, _augmented))
        yield


def copies_in_batch(count: int) -> AbstractContextManager[int]:
    """Declares that a batch holds `count` copies of its images, transformed alike."""
    return scope(_copies, count)


def _augmented(layer: Any, call: Any, inputs: Any, training: Any = None, **kwargs: Any) -> Any:
    seed = (_seeds.get() or {})[id(layer)]
    generators = [
        generator for part in all_layers(layer)
        for generator in held_by(part, keras.random.SeedGenerator)
    ]  # fmt: skip

    def augmented(images: Images) -> Any:
        numbers = itertools.count()

        def next_seed(ordered: bool = True) -> Seed:
            return backend.fold_in(seed, next(numbers))

        with contextlib.ExitStack() as stack:
            for generator in generators:
                stack.enter_context(replaced(generator, "next", next_seed))
            return call(images, training=True, **kwargs)

    copies = _copies.get()
    if copies is None:
        return augmented(inputs)
    return ops.concatenate([augmented(part) for part in ops.split(inputs, copies)])
