"""Hashes everything that the results of an evaluation depend on, to detect changes."""

import hashlib
import json
import re
import sys
from collections.abc import Iterable, Mapping
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_robust.attacks import Attack
from keras_robust.model.images import LazyImages, as_bytes, content_of
from keras_robust.types import Model


def fingerprint(
    model: Model,
    x: np.ndarray | LazyImages,
    y: np.ndarray,
    clean: np.ndarray,
    attacks: Mapping[str, Attack],
    **settings: Any,
) -> dict[str, str]:
    """Returns values and hashes by name.

    Args:
        model: Keras model, whose weights and configuration are hashed. Any other callable is
            identified by its name and its predictions.
        x: images.
        y: labels.
        clean: int array, the classes predicted for `x`.
        attacks: mapping of names to attacks.
        settings: everything else that the results depend on.
    """
    facts = {
        "images": f"{x.dtype} {x.shape} {content_of(x)}",
        "labels": _hash([y]),
        "attacks": json.dumps(list(attacks)),
        **{f"arguments of {name}": attack_fingerprint(attack) for name, attack in attacks.items()},
        **{name: repr(value) for name, value in settings.items()},
        "keras_robust version": sys.modules["keras_robust"].__version__,
        "backend": f"{keras.backend.backend()}, Keras {keras.version()}",
    }
    if isinstance(model, keras.layers.Layer):
        facts["model configuration"] = _hash([_configuration(model).encode()])
        facts["model weights"] = _weights(model)
    else:
        facts["model"] = _stable_repr(model)
        facts["predictions"] = _hash([clean])
    return facts


def attack_fingerprint(attack: Attack) -> str:
    """Returns an attack's fingerprint.

    It covers the arguments of the attack and of its objective, the weights of the models among
    them, and the members of an ensemble.
    """
    objective = getattr(attack.objective, "__dict__", {})
    values = [*vars(attack).values(), *objective.values()]
    models = [value for value in values if isinstance(value, keras.layers.Layer)]
    members = [attack_fingerprint(member) for member in getattr(attack, "attacks", ())]
    arrays = [value for value in keras.tree.flatten(values) if isinstance(value, np.ndarray)]
    hashes = [*map(content_hash, arrays), *map(_weights, models)]
    return " ".join([_stable_repr(attack), _stable_repr(objective), *hashes, *members])


def content_hash(array: np.ndarray) -> str:
    """Hashes an array's shape, dtype and values.

    Values that a broadcast view repeats are read only once.
    """
    kept = tuple(slice(None) if step else slice(1) for step in array.strides)
    return f"{array.shape} {_hash([np.ascontiguousarray(array[kept])])}"


def _weights(model: Model) -> str:
    return _hash(ops.convert_to_numpy(weight) for weight in model.weights)


def _configuration(model: Model) -> str:
    """Serializes the model's configuration, with its layer names replaced by numbers.

    Keras's automatic names are counted per process, so they differ between processes.
    """
    try:
        config = keras.saving.serialize_keras_object(model)["config"]
        text = json.dumps(config, default=_stable_repr)
    except (NotImplementedError, TypeError, ValueError):  # a subclass without `get_config`
        return type(model).__qualname__
    names = dict.fromkeys(re.findall('"name": ("[^"]*")', text))
    for number, name in enumerate(names):
        text = text.replace(name, f'"#{number}"')
    return text


def _stable_repr(value: Any) -> str:
    """Returns `repr(value)` without memory addresses, which differ between processes."""
    return re.sub(r" at 0x[0-9a-fA-F]+", "", repr(value))


def _hash(values: Iterable[np.ndarray | bytes]) -> str:
    digest = hashlib.sha256()
    for value in values:
        if isinstance(value, np.ndarray):
            digest.update(f"{value.dtype}{value.shape}".encode())
        digest.update(as_bytes(value) if isinstance(value, np.ndarray) else value)
    return digest.hexdigest()
