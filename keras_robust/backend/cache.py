"""Compiled functions, kept as long as the model that they were compiled for."""

import weakref
from collections.abc import Callable, Hashable
from typing import Any

_functions: weakref.WeakKeyDictionary[Any, dict[Hashable, Any]] = weakref.WeakKeyDictionary()


def cached(model: Any, key: Hashable, build: Callable[[Callable[[], Any]], Any]) -> Any:
    """Returns `build(reference)`, built once for each `(model, key)`.

    `reference()` gives the model. What is built must hold the reference and not the model, or
    the model would never be freed. A model that cannot be referenced weakly is not cached.
    """
    try:
        reference = weakref.ref(model)
    except TypeError:
        return build(lambda: model)
    functions = _functions.setdefault(model, {})
    if key not in functions:
        functions[key] = build(reference)
    return functions[key]
