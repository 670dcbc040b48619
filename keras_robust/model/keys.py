"""Keys that say by value what is baked into a compiled function."""

import enum
import functools
import hashlib
import logging
import struct
import types
import weakref
from collections import deque
from collections.abc import Hashable, Mapping, Set
from typing import Any

import keras
import numpy as np

# Their code is what it is: no globals of it are looked up.
_LIBRARIES = {"jax", "jaxlib", "keras", "keras_robust", "numpy", "tensorflow"}
# Their objects (compiled functions, data sets) keep caches, which are no part of what they are.
_WITH_CACHES = {"jax", "jaxlib", "tensorflow"}
# By identity: symbolic, or of use only before a model is built, or their state is variables, or
# what they refer to is the whole program.
_OPAQUE = (
    keras.KerasTensor,
    keras.initializers.Initializer,
    keras.metrics.Metric,
    keras.optimizers.Optimizer,
    keras.random.SeedGenerator,
    logging.Logger,
    types.ModuleType,
)
_NUMBERS_AND_TEXT = (int, float, complex, str, bytes, bytearray)
_CONTAINERS = (list, tuple, dict, set, frozenset)

# Of what every layer has, that which decides what it computes.
_SETTINGS = ("activity_regularizer", "autocast", "dtype_policy", "supports_masking", "trainable")
# What `compile`, `fit`, `evaluate`, `predict` and `train_on_batch` add to a model. Those with an
# underscore are private: Keras has no list of what it adds.
_TRAINING = {
    "history",
    "optimizer",
    "stop_evaluating",
    "stop_predicting",
    "stop_training",
    "_compile_config",
    "_compiled_trainable_state",
    "_eval_epoch_iterator",
    "_jax_state",
}
# What `load_weights` and `export` add to a layer: as good as none.
_BLANK = {
    "is_awq_calibrated": False,
    "is_gptq_calibrated": False,
    "predict_function": None,
    "test_function": None,
    "train_function": None,
}
# Begins the names that TensorFlow adds to what holds other objects, in order to save them; they
# are private too.
_TRACKING = "_self_"


def value_key(value: Any) -> Hashable:
    """A key of `value`: where two are equal, the same function would be traced.

    Numbers, text, arrays, containers, functions (with the globals that they name) and other
    objects count by what is in them; variables, classes and modules by identity; layers as in
    `structure_key`.
    """
    return _Walk(value).key


def structure_key(layer: Any) -> Hashable:
    """A key of the structure of a layer or model, which changes with all but its weights.

    It is the layers, wherever they sit, their variables, and the attributes that decide what
    they compute. What Keras keeps of calls and of training is no part of it.
    """
    return _Walk(layer).key


class Same:
    """The identity of an object, as a key that does not keep the object alive.

    Args:
        value: the object. One that cannot be referenced weakly is kept alive.
    """

    __slots__ = ("_hash", "_reference")

    def __init__(self, value: Any) -> None:
        self._hash = id(value)
        try:
            self._reference: Any = weakref.ref(value)
        except TypeError:
            self._reference = lambda: value

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Same):
            return NotImplemented
        value = self._reference()
        return value is not None and value is other._reference()


class _Walk:
    """A walk through a value and all that it refers to.

    What may refer to itself is numbered when it is met, and described once, in that order.
    """

    def __init__(self, value: Any) -> None:
        self._numbers: dict[int, int] = {}
        self._met: list[Any] = []  # It grows below. It also keeps ids from being used again.
        root = self._of(value)
        self.key = (root, *map(self._description, self._met))

    def _of(self, value: Any) -> Hashable:
        """What stands for `value` where it is referred to."""
        kind = type(value)
        if value is None or kind is str:
            return value
        if kind is bool or kind is int:
            return kind, value
        if isinstance(value, type | Same):
            return value
        if isinstance(value, enum.Enum):
            return kind, value.name, self._of(value.value)
        if isinstance(value, _NUMBERS_AND_TEXT) and not isinstance(value, np.generic):
            base = next(base for base in _NUMBERS_AND_TEXT if isinstance(value, base))
            return kind, base.__repr__(value)
        if kind is tuple or _family(value) is tuple:
            return (tuple, *map(self._of, value))
        number = self._numbers.setdefault(id(value), len(self._met))
        if number == len(self._met):
            self._met.append(value)
        return "number", number

    def _all(self, values: Any) -> Hashable:
        return tuple(map(self._of, values))

    def _named(self, values: Mapping[str, Any]) -> Hashable:
        return tuple((name, self._of(values[name])) for name in sorted(values))

    def _description(self, value: Any) -> Hashable:
        if isinstance(value, keras.Operation):
            return self._operation(value)
        if isinstance(value, keras.Variable) or (  # Or one of TensorFlow's.
            hasattr(value, "assign") and keras.ops.is_tensor(value)
        ):
            return Same(value), str(value.shape), str(value.dtype)
        if isinstance(value, types.FunctionType):
            return self._function(value)
        if isinstance(value, types.CodeType):
            return self._code(value)
        if isinstance(value, types.MethodType):
            return types.MethodType, self._of(value.__func__), self._of(value.__self__)
        if isinstance(value, types.BuiltinMethodType):
            owner = value.__self__
            is_bound = owner is not None and not isinstance(owner, types.ModuleType)
            return (value.__name__, self._of(owner)) if is_bound else value
        if isinstance(value, functools.partial):
            return type(value), self._all([value.func, value.args, value.keywords])
        if isinstance(value, np.ndarray | np.generic) or keras.ops.is_tensor(value):
            return self._array(value)
        if isinstance(value, _OPAQUE) or _root(type(value).__module__) in _WITH_CACHES:
            return Same(value)
        return self._object(value)

    def _operation(self, value: Any) -> Hashable:
        """A layer, or another node of a functional model."""
        kept = next(names for kind, names in _kept_by_keras() if isinstance(value, kind))
        parts = []
        if isinstance(value, keras.Model):
            kept = kept | _TRAINING
            parts = [value.layers, getattr(value, "operations", None)]
        attributes = {
            name: attribute
            for name, attribute in vars(value).items()
            if name not in kept and not name.startswith(_TRACKING)
            if _BLANK.get(name, _BLANK) is not attribute
        }
        return (
            Same(value),
            type(value),
            self._all(getattr(value, name, None) for name in _SETTINGS),
            self._all(getattr(value, "variables", ())),
            self._all(parts),
            self._named(attributes),
        )

    def _function(self, value: Any) -> Hashable:
        scope = value.__globals__
        names = [] if _root(scope.get("__name__")) in _LIBRARIES else _names(value.__code__)
        used = {name: scope[name] for name in names if name in scope}
        for name, other in used.items():
            if isinstance(other, types.FunctionType) and other.__globals__ is not scope:
                used[name] = Same(other)
        return (
            types.FunctionType,
            self._of(value.__code__),
            self._all([value.__defaults__, value.__kwdefaults__, vars(value)]),
            self._all(map(_content, value.__closure__ or ())),
            self._named(used),
        )

    def _code(self, value: Any) -> Hashable:
        return (
            types.CodeType,
            value.co_code,
            value.co_exceptiontable,
            value.co_flags,
            (value.co_argcount, value.co_posonlyargcount, value.co_kwonlyargcount),
            (value.co_names, value.co_varnames, value.co_freevars, value.co_cellvars),
            self._all(value.co_consts),
        )

    def _array(self, value: Any) -> Hashable:
        try:
            array = np.asarray(value)
        except (TypeError, RuntimeError):  # It is being traced.
            return Same(value)
        if not array.dtype.hasobject:
            content: Hashable = hashlib.sha256(array.tobytes()).digest()
        elif isinstance(value, np.ndarray):
            content = self._of(array.tolist())
        else:  # Ragged, sparse or of text: it cannot be changed.
            return Same(value)
        return type(value), str(array.dtype), array.shape, content

    def _object(self, value: Any) -> Hashable:
        kind = _family(value)
        content: Any = None
        attributes, are_all = _attributes(value) if kind not in _CONTAINERS else ({}, True)
        if isinstance(value, Mapping):
            content = tuple((self._of(key), self._of(value[key])) for key in value)
        elif isinstance(value, Set):
            content = frozenset(map(self._of, value))
        elif isinstance(value, list | tuple | deque):
            content = self._all(value)
        elif not are_all:
            content = Same(value)
        return kind, content, self._named(attributes)


def _names(code: types.CodeType) -> set[str]:
    """The names that the code, or code in it, looks up."""
    inner = [_names(const) for const in code.co_consts if isinstance(const, types.CodeType)]
    return {*code.co_names}.union(*inner)


def _content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # It is empty yet.
        return cell


def _root(module: str | None) -> str:
    return str(module).partition(".")[0]


def _family(value: Any) -> type:
    """Its type; that of a plain container for one in which Keras or TensorFlow tracks changes."""
    kind = type(value)
    if _root(kind.__module__) in ("keras", "tensorflow"):
        return next((plain for plain in _CONTAINERS if isinstance(value, plain)), kind)
    return kind


def _attributes(value: Any) -> tuple[dict[str, Any], bool]:
    """An object's own attributes, in a `__dict__` or in slots; whether it has no other state.

    The latter as `pickle` finds it out: what is in C takes more room than pointers to attributes.
    """
    kind = type(value)
    slots = {
        name: getattr(value, name, None)
        for base in kind.__mro__
        for name, member in vars(base).items()
        if isinstance(member, types.MemberDescriptorType) and name != "__dict__"
    }
    pointers = (kind.__dictoffset__ > 0) + (kind.__weakrefoffset__ > 0) + len(slots)
    size = object.__basicsize__ + pointers * struct.calcsize("P")
    are_all = kind is not object and kind.__itemsize__ == 0 and kind.__basicsize__ == size
    return slots | getattr(value, "__dict__", {}), are_all


@functools.cache
def _kept_by_keras() -> list[tuple[type, frozenset[str]]]:
    """The attributes that every model, layer or operation has, the most special class first."""
    x = keras.Input((1,), name="x")
    samples = (
        keras.Model(x, x, name="functional"),
        keras.Model(name="model"),
        keras.layers.Layer(name="layer"),
        keras.Operation(name="operation"),
    )
    return [(type(sample), frozenset(vars(sample))) for sample in samples]
