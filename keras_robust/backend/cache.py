"""Cache of compiled functions, kept as long as the model they were compiled for."""

import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any

from keras_robust.types import Model

# The most functions to keep. On JAX, each uses 110 to 200 memory maps, and Linux allows a process
# 65,530.
MOST = 128
# By the model's `id` and the key, in order of use, the most recent last.
_functions: OrderedDict[tuple[int, Hashable], Any] = OrderedDict()
_models: dict[int, weakref.ref[Any]] = {}


def cached(model: Model, key: Hashable, build: Callable[[], Any]) -> Any:
    """Returns `build()`, built once for each `(model, key)`.

    The result is kept until the model is deleted, or until `MOST` other results have been used
    since. Nothing is cached for a model that does not support weak references.
    """
    try:
        _forget_with(model)
    except TypeError:
        return build()
    entry = (id(model), key)
    if entry not in _functions:
        _functions[entry] = build()
        while len(_functions) > MOST:
            _functions.popitem(last=False)
    _functions.move_to_end(entry)
    return _functions[entry]


def _forget_with(model: Model) -> None:
    """Removes a model's compiled functions when the model is deleted."""
    number = id(model)

    def forget(_: Any) -> None:
        # May run at any time, even while another thread builds a function.
        _models.pop(number, None)
        for entry in list(_functions):
            if entry[0] == number:
                _functions.pop(entry, None)

    if number not in _models:
        _models[number] = weakref.ref(model, forget)
