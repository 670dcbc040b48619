"""Keys that describe by value what a compiled function depends on."""

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

# Packages whose functions are described without the globals that they name.
_LIBRARIES = {"jax", "jaxlib", "keras", "keras_robust", "numpy", "tensorflow"}
# Packages whose objects (compiled functions, data sets) are compared by identity, because they
# keep caches.
_WITH_CACHES = {"jax", "jaxlib", "tensorflow"}
# Types whose objects are compared by identity: they are symbolic, are used only before a model is
# built, hold their state in variables, or refer to the whole program.
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

# Attributes of every layer that decide what it computes.
_SETTINGS = ("activity_regularizer", "autocast", "dtype_policy", "supports_masking", "trainable")
# Attributes that `compile`, `fit`, `evaluate`, `predict` and `train_on_batch` add to a model. Names
# with an underscore are private: Keras has no public list of them.
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
# Attributes that `load_weights` and `export` add to a layer. With these values they have no effect.
_BLANK = {
    "is_awq_calibrated": False,
    "is_gptq_calibrated": False,
    "predict_function": None,
    "test_function": None,
    "train_function": None,
}
# Prefix of the private attributes that TensorFlow adds to objects in order to save them.
_TRACKING = "_self_"


def value_key(value: Any) -> Hashable:
    """Returns a key of `value`. Values with equal keys give the same traced function.

    Numbers, strings, arrays, containers, functions (with the globals that they name) and other
    objects are compared by their content. Variables, classes and modules are compared by identity,
    and layers as in `structure_key`.
    """
    return _Walk(value).key


def structure_key(layer: Any) -> Hashable:
    """Returns a key of the structure of a layer or a model.

    It changes with everything but the values of the weights. It covers the layers at any depth,
    their variables, and the attributes that decide what they compute. It leaves out what Keras
    stores about calls and training.
    """
    return _Walk(layer).key


class Same:
    """The identity of an object, as a key that does not keep the object alive.

    Args:
        value: the object. It is kept alive if it does not support weak references.
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
    """Describes a value and everything that it refers to.

    Objects that may refer to themselves are numbered when they are first met. Each of them is
    described once, in that order.
    """

    def __init__(self, value: Any) -> None:
        self._numbers: dict[int, int] = {}
        # It grows while `map` reads it below. It also keeps ids from being reused.
        self._met: list[Any] = []
        root = self._reference(value)
        self.key = (root, *map(self._description, self._met))

    def _reference(self, value: Any) -> Hashable:
        """Returns the key of a reference to `value`: its content or its number."""
        kind = type(value)
        if value is None or kind is str:
            return value
        if kind is bool or kind is int:
            return kind, value
        if isinstance(value, type | Same):
            return value
        if isinstance(value, enum.Enum):
            return kind, value.name, self._reference(value.value)
        if isinstance(value, _NUMBERS_AND_TEXT) and not isinstance(value, np.generic):
            base = next(base for base in _NUMBERS_AND_TEXT if isinstance(value, base))
            return kind, base.__repr__(value)
        if kind is tuple or _family(value) is tuple:
            return (tuple, *map(self._reference, value))
        number = self._numbers.setdefault(id(value), len(self._met))
        if number == len(self._met):
            self._met.append(value)
        return "number", number

    def _references(self, values: Any) -> Hashable:
        return tuple(map(self._reference, values))

    def _named_references(self, values: Mapping[str, Any]) -> Hashable:
        return tuple((name, self._reference(values[name])) for name in sorted(values))

    def _description(self, value: Any) -> Hashable:
        if isinstance(value, keras.Operation):
            return self._operation(value)
        if isinstance(value, keras.Variable) or (  # Or a `tf.Variable`.
            hasattr(value, "assign") and keras.ops.is_tensor(value)
        ):
            return Same(value), str(value.shape), str(value.dtype)
        if isinstance(value, types.FunctionType):
            return self._function(value)
        if isinstance(value, types.CodeType):
            return self._code(value)
        if isinstance(value, types.MethodType):
            return (
                types.MethodType,
                self._reference(value.__func__),
                self._reference(value.__self__),
            )
        if isinstance(value, types.BuiltinMethodType):
            owner = value.__self__
            is_bound = owner is not None and not isinstance(owner, types.ModuleType)
            return (value.__name__, self._reference(owner)) if is_bound else value
        if isinstance(value, functools.partial):
            return type(value), self._references([value.func, value.args, value.keywords])
        if isinstance(value, np.ndarray | np.generic) or keras.ops.is_tensor(value):
            return self._array(value)
        if isinstance(value, _OPAQUE) or _root(type(value).__module__) in _WITH_CACHES:
            return Same(value)
        return self._object(value)

    def _operation(self, value: Any) -> Hashable:
        """Describes a layer, or another operation in a functional model."""
        ignored = next(names for kind, names in _attributes_of_keras() if isinstance(value, kind))
        parts = []
        if isinstance(value, keras.Model):
            ignored = ignored | _TRAINING
            parts = [value.layers, getattr(value, "operations", None)]
        attributes = {
            name: attribute
            for name, attribute in vars(value).items()
            if name not in ignored and not name.startswith(_TRACKING)
            if _BLANK.get(name, _BLANK) is not attribute
        }
        return (
            Same(value),
            type(value),
            self._references(getattr(value, name, None) for name in _SETTINGS),
            self._references(getattr(value, "variables", ())),
            self._references(parts),
            self._named_references(attributes),
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
            self._reference(value.__code__),
            self._references([value.__defaults__, value.__kwdefaults__, vars(value)]),
            self._references(map(_content, value.__closure__ or ())),
            self._named_references(used),
        )

    def _code(self, value: Any) -> Hashable:
        return (
            types.CodeType,
            value.co_code,
            value.co_exceptiontable,
            value.co_flags,
            (value.co_argcount, value.co_posonlyargcount, value.co_kwonlyargcount),
            (value.co_names, value.co_varnames, value.co_freevars, value.co_cellvars),
            self._references(value.co_consts),
        )

    def _array(self, value: Any) -> Hashable:
        try:
            array = np.asarray(value)
        except (TypeError, RuntimeError):  # A symbolic tensor.
            return Same(value)
        if not array.dtype.hasobject:
            content: Hashable = hashlib.sha256(array.tobytes()).digest()
        elif isinstance(value, np.ndarray):
            content = self._reference(array.tolist())
        else:  # A ragged, sparse or string tensor, which is immutable.
            return Same(value)
        return type(value), str(array.dtype), array.shape, content

    def _object(self, value: Any) -> Hashable:
        kind = _family(value)
        content: Any = None
        attributes, are_all = _attributes(value) if kind not in _CONTAINERS else ({}, True)
        if isinstance(value, Mapping):
            content = tuple((self._reference(key), self._reference(value[key])) for key in value)
        elif isinstance(value, Set):
            content = frozenset(map(self._reference, value))
        elif isinstance(value, list | tuple | deque):
            content = self._references(value)
        elif not are_all:
            content = Same(value)
        return kind, content, self._named_references(attributes)


def _names(code: types.CodeType) -> set[str]:
    """Returns the names that code looks up, including those in nested code."""
    inner = [_names(const) for const in code.co_consts if isinstance(const, types.CodeType)]
    return {*code.co_names}.union(*inner)


def _content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # The cell is still empty.
        return cell


def _root(module: str | None) -> str:
    return str(module).partition(".")[0]


def _family(value: Any) -> type:
    """Returns a value's type, or the plain type of a tracked container.

    Keras and TensorFlow wrap lists and dicts in classes of their own to track changes.
    """
    kind = type(value)
    if _root(kind.__module__) in ("keras", "tensorflow"):
        return next((plain for plain in _CONTAINERS if isinstance(value, plain)), kind)
    return kind


def _attributes(value: Any) -> tuple[dict[str, Any], bool]:
    """Returns an object's attributes, from `__dict__` and slots, and whether it has no other state.

    Like `pickle`, it detects other state, which C code holds, by the object's size: attributes
    take up one pointer each.
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
def _attributes_of_keras() -> list[tuple[type, frozenset[str]]]:
    """Returns the attributes of every model, layer or operation, the most specific class first."""
    x = keras.Input((1,), name="x")
    samples = (
        keras.Model(x, x, name="functional"),
        keras.Model(name="model"),
        keras.layers.Layer(name="layer"),
        keras.Operation(name="operation"),
    )
    return [(type(sample), frozenset(vars(sample))) for sample in samples]
