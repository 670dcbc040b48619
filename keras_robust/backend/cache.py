"""Compiled functions, kept as long as the model that they were compiled for."""

import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any

# On JAX each holds 110 to 200 memory maps, of which Linux allows a process 65,530.
MOST = 128
# By the model's `id` and the key; the one that was used last comes last.
_functions: OrderedDict[tuple[int, Hashable], Any] = OrderedDict()
_models: dict[int, weakref.ref[Any]] = {}


def cached(model: Any, key: Hashable, build: Callable[[], Any]) -> Any:
    """Returns `build()`, built once for each `(model, key)`.

    It is kept until the model goes, or until `MOST` others have been used since. A model that
    cannot be referenced weakly is not cached.
    """
    try:
        _follow(model)
    except TypeError:
        return build()
    place = (id(model), key)
    if place not in _functions:
        _functions[place] = build()
        while len(_functions) > MOST:
            _functions.popitem(last=False)
    _functions.move_to_end(place)
    return _functions[place]


def _follow(model: Any) -> None:
    """Forgets what was compiled for the model when it goes."""
    number = id(model)

    def forget(_: Any) -> None:
        # It may run at any time, also while another thread builds a function.
        _models.pop(number, None)
        for place in list(_functions):
            if place[0] == number:
                _functions.pop(place, None)

    if number not in _models:
        _models[number] = weakref.ref(model, forget)
