"""Keys of values and models change with everything that affects traced functions."""

import enum
import functools
import gc
import itertools
import operator
import types
import warnings
import weakref

import keras
import numpy as np
import pytest
from keras import layers

from keras_robust.model import keys
from keras_robust.model.keys import Same, structure_key, value_key

pytestmark = pytest.mark.slow_on_jax

SCALE = 2.0
SETTINGS = {"scale": 2.0}
TABLE = np.ones(3)
LAYER = layers.Activation("relu")


class Color(enum.Enum):
    RED = 1


class Number(enum.IntEnum):
    ONE = 1


class Shape(enum.Enum):
    RED = 1


class Level(int):
    def __repr__(self):
        return "level"


class Settings:
    def __init__(self, scale=2.0):
        self.scale = scale
        self._names = ["a"]

    def times(self, x):
        return x * self.scale

    def plus(self, x):
        return x + self.scale


class Slots:
    __slots__ = ("__hidden", "scale", "unset")

    def __init__(self, scale=2.0):
        self.scale = scale
        self.__hidden = scale


class NamedList(list):
    name = "a"


def factory(scale, offset=1.0, *, power=1):
    def inner(x, factor=offset, *, exponent=power):
        return (lambda value: value * scale)(x) ** exponent + factor

    return inner


def global_scale(x):
    return x * SCALE


def nested_global_scale(x):
    return [value * SCALE for value in x]


def calls_global_scale(x):
    return global_scale(x)


def global_settings(x):
    return x * SETTINGS["scale"]


def global_table(x):
    return x * TABLE


def global_layer(x):
    return LAYER(x)


def factorial(n):
    return n * factorial(n - 1) if n else 1


def is_even(n):
    return n == 0 or is_odd(n - 1)


def is_odd(n):
    return n != 0 and is_even(n - 1)


def tensor(values, dtype="float32"):
    return keras.ops.convert_to_tensor(values, dtype)


# Each function makes a value that is traced differently from the others.
VALUES = {
    "none": lambda: None,
    "false": lambda: False,
    "zero": lambda: 0,
    "float_zero": lambda: float(0),
    "negative_zero": lambda: -0.0,
    "true": lambda: True,
    "one": lambda: 1,
    "float_one": lambda: float(1),
    "huge": lambda: 10**5000,
    "nan": lambda: float("nan"),
    "complex": lambda: complex(1, 0),
    "complex_negative_zero": lambda: complex(1, -0.0),
    "text": lambda: str(1),
    "bytes": lambda: b"1",
    "enum": lambda: Color.RED,
    "other_enum": lambda: Shape.RED,
    "int_enum": lambda: Number.ONE,
    "int_subclass": lambda: Level(1),
    "other_int_subclass": lambda: Level(2),
    "tuple": lambda: (1, 2),
    "tuple_of_tuple": lambda: ((1, 2),),
    "list": lambda: [1, 2],
    "list_in_another_order": lambda: [2, 1],
    "list_of_floats": lambda: [1.0, 2.0],
    "nested": lambda: [1, [2]],
    "set": lambda: {1, 2},
    "frozenset": lambda: frozenset({1, 2}),
    "mapping": lambda: {"a": 1},
    "mapping_of_another_key": lambda: {"b": 1},
    "mapping_of_another_value": lambda: {"a": [1]},
    "proxy": lambda: types.MappingProxyType({"a": 1}),
    "list_subclass": lambda: NamedList([1, 2]),
    "slice": lambda: slice(0, 2),
    "other_slice": lambda: slice(0, 3),
    "numpy_scalar": lambda: np.float32(1),
    "numpy_double": lambda: np.float64(1),
    "numpy_text": lambda: np.str_("1"),
    "numpy_0d": lambda: np.array(1.0),
    "numpy_1d": lambda: np.ones(1),
    "numpy_2d": lambda: np.ones((1, 1)),
    "numpy_ints": lambda: np.ones(1, "int64"),
    "numpy_big_endian": lambda: np.ones(1, ">f8"),
    "numpy_zeros": lambda: np.zeros(1),
    "numpy_negative_zeros": lambda: -np.zeros(1),
    "numpy_objects": lambda: np.array([Settings(), "a"], object),
    "numpy_other_objects": lambda: np.array([Settings(1.0), "a"], object),
    "tensor": lambda: tensor([1.0]),
    "tensor_0d": lambda: tensor(1.0),
    "tensor_bfloat16": lambda: tensor([1.0], "bfloat16"),
    "tensor_float16": lambda: tensor([1.0], "float16"),
    "function": lambda: factory(2.0),
    "function_of_another_closure": lambda: factory(3.0),
    "function_of_another_closed_array": lambda: factory(np.ones(3)),
    "function_of_another_default": lambda: factory(2.0, offset=3.0),
    "function_of_another_kwdefault": lambda: factory(2.0, power=2),
    "lambda": lambda: lambda x: x * 2.0,
    "lambda_of_another_constant": lambda: lambda x: x * 3.0,
    "lambda_of_another_type": lambda: lambda x: x * 2,
    "lambda_of_another_method": lambda: lambda x: x.mean(),
    "lambda_of_yet_another_method": lambda: lambda x: x.sum(),
    "lambda_of_another_argument": lambda: lambda y: y * 2.0,
    "builtin": lambda: len,
    "ufunc": lambda: np.exp,
    "other_ufunc": lambda: np.log,
    "class": lambda: Settings,
    "other_class": lambda: Slots,
    "module": lambda: np,
    "partial": lambda: functools.partial(factory, 2.0),
    "partial_of_another_argument": lambda: functools.partial(factory, 3.0),
    "partial_of_another_keyword": lambda: functools.partial(factory, 2.0, power=2),
    "method": lambda: Settings().times,
    "other_method": lambda: Settings().plus,
    "method_of_another_object": lambda: Settings(3.0).times,
    "array_method": lambda: np.ones(3).dot,
    "array_method_of_another": lambda: np.zeros(3).dot,
    "object": lambda: Settings(),
    "object_of_another_attribute": lambda: Settings(3.0),
    "namespace": lambda: types.SimpleNamespace(scale=2.0, _names=["a"]),
    "slots": lambda: Slots(),
    "other_slots": lambda: Slots(3.0),
}


@pytest.mark.parametrize("name", VALUES)
def test_equal_values_have_equal_keys(name):
    one, other = VALUES[name](), VALUES[name]()
    assert value_key(one) == value_key(other)
    assert hash(value_key(one)) == hash(value_key(other))


def test_different_values_have_different_keys():
    found = {name: value_key(make()) for name, make in VALUES.items()}
    pairs = itertools.combinations(found, 2)
    assert [(a, b) for a, b in pairs if found[a] == found[b]] == []


@pytest.mark.parametrize("size", [3, 100_000])
def test_every_element_of_an_array_counts(size):
    array = np.zeros(size)
    before, before_tensor = value_key([array]), value_key(tensor(array))
    array[size // 2] = 1e-30
    assert value_key([array]) != before
    assert value_key(tensor(array)) != before_tensor


def test_arrays_are_compared_by_content_and_not_by_layout():
    array = np.arange(6.0).reshape(2, 3)
    assert value_key(array) == value_key(np.asfortranarray(array))


def change_closure(function):
    function.__closure__[0].cell_contents = 5.0


@pytest.mark.parametrize(
    ("make", "change"),
    [
        (Settings, lambda value: setattr(value, "scale", 3.0)),
        (Settings, lambda value: setattr(value, "_private", 3.0)),
        (Settings, lambda value: value._names.append("b")),
        (Slots, lambda value: setattr(value, "unset", 3.0)),
        (lambda: Settings().times, lambda value: setattr(value.__self__, "scale", 3.0)),
        (lambda: NamedList([1]), lambda value: setattr(value, "name", "b")),
        (lambda: NamedList([1]), lambda value: value.append(2)),
        (lambda: {"a": [1]}, lambda value: value["a"].append(2)),
        (lambda: factory(2.0), lambda value: setattr(value, "__defaults__", (5.0,))),
        (lambda: factory(2.0), lambda value: value.__kwdefaults__.update(exponent=3)),
        (lambda: factory(2.0), lambda value: setattr(value, "scale", 5.0)),
        (lambda: factory([2.0]), lambda value: value.__closure__[0].cell_contents.append(1)),
        (lambda: factory(2.0), change_closure),
        (lambda: functools.partial(sum, [1]), lambda value: value.args[0].append(2)),
        (lambda: np.array([[1], None], object), lambda value: value[0].append(2)),
        (lambda: factory(layers.Dropout(0.5)), lambda value: setattr(closed(value), "rate", 0.1)),
    ],
)
def test_a_change_inside_of_a_value_changes_its_key(make, change):
    value = make()
    before = value_key(value)
    assert value_key(value) == before
    change(value)
    assert value_key(value) != before


def closed(function):
    return function.__closure__[0].cell_contents


@pytest.mark.parametrize(
    ("function", "name", "other"),
    [
        (global_scale, "SCALE", 3.0),
        (global_scale, "SCALE", 2),
        (nested_global_scale, "SCALE", 3.0),
        (calls_global_scale, "SCALE", 3.0),
        (calls_global_scale, "global_scale", nested_global_scale),
        (global_settings, "SETTINGS", {"scale": 3.0}),
        (global_table, "TABLE", np.zeros(3)),
        (global_layer, "LAYER", layers.Activation("relu")),
        (global_layer, "LAYER", np.exp),
    ],
)
def test_globals_used_by_a_function_count(function, name, other, monkeypatch):
    before = value_key(function)
    monkeypatch.setitem(globals(), name, other)
    assert value_key(function) != before
    monkeypatch.undo()
    assert value_key(function) == before


def test_changes_inside_of_globals_count(monkeypatch):
    before = value_key(global_settings), value_key(global_layer)
    monkeypatch.setitem(SETTINGS, "scale", 3.0)
    monkeypatch.setattr(LAYER, "activation", keras.activations.tanh)
    assert value_key(global_settings) != before[0]
    assert value_key(global_layer) != before[1]


def test_unused_globals_do_not_count(monkeypatch):
    before = value_key(global_table)
    monkeypatch.setitem(globals(), "SCALE", 3.0)
    assert value_key(global_table) == before


def in_module(name, **scope):
    """Returns `global_scale` as a function of another module."""
    return types.FunctionType(global_scale.__code__, {"__name__": name, **scope})


def test_called_functions_of_other_modules_are_compared_by_identity(monkeypatch):
    monkeypatch.setitem(globals(), "global_scale", in_module("elsewhere", SCALE=2.0))
    before = value_key(calls_global_scale)
    assert value_key(calls_global_scale) == before
    monkeypatch.setitem(globals(), "global_scale", in_module("elsewhere", SCALE=2.0))
    assert value_key(calls_global_scale) != before


def test_globals_of_libraries_do_not_count():
    caches = [in_module("keras.cache", SCALE=scale) for scale in (1.0, 2.0)]
    others = [in_module("elsewhere", SCALE=scale) for scale in (1.0, 2.0)]
    assert value_key(caches[0]) == value_key(caches[1])
    assert value_key(others[0]) != value_key(others[1])


def test_compiling_a_function_does_not_change_its_key():
    function = factory(2.0)
    before = value_key(function)
    keras.ops.vectorized_map(function, tensor([1.0, 2.0]))
    assert value_key(function) == before


def loop(content):
    values = [content]
    values.append(values)
    return values


def ring(content):
    one, other = Settings(content), Settings(content)
    one.other, other.other = other, one
    return one


def recursive(content):
    def inner(n):
        return inner(n - 1) * content if n else 1

    return inner


@pytest.mark.parametrize("make", [loop, ring, recursive])
def test_cyclic_values(make):
    assert value_key(make(1)) == value_key(make(1))
    assert value_key(make(1)) != value_key(make(2))


def test_recursive_functions():
    assert value_key(factorial) == value_key(factorial)
    assert value_key(is_even) != value_key(is_odd)


def test_cycles_of_different_length_have_different_keys():
    one, other = ["one"], ["other"]
    one.append(other)
    other.append(one)
    self_loop = ["other"]
    self_loop.append(self_loop)
    assert value_key([one, other]) != value_key([one, self_loop])


def test_deeply_nested_values():
    def chain(end):
        for _ in range(5000):
            end = [end]
        return end

    assert value_key(chain(1)) == value_key(chain(1))
    assert value_key(chain(1)) != value_key(chain(2))


@pytest.mark.parametrize("value", [[1, [2.0]], {"a": [1]}, {1, 2}, (1, [2])])
def test_tracked_containers_equal_plain_ones(value):
    layer = layers.Layer()
    layer.value = value
    assert value_key(layer.value) == value_key(value)


def test_traced_tensors_are_compared_by_identity():
    results = []

    def function(x):
        other = x + 0.0
        results.append((value_key(x) == value_key(x), value_key(x) == value_key(other)))
        return x

    keras.ops.vectorized_map(function, tensor([1.0, 2.0]))
    assert set(results) == {(True, False)}
    x, y = keras.Input((1,)), keras.Input((1,))
    assert value_key(x) == value_key(x) != value_key(y)


def test_variables_are_compared_by_identity():
    variable, other = keras.Variable([1.0]), keras.Variable([1.0])
    before = value_key(variable)
    assert before != value_key(other)
    assert before != value_key(tensor([1.0]))
    variable.assign([2.0])
    assert value_key(variable) == before


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="TensorFlow's own variables")
def test_tensorflow_variables_are_compared_by_identity():
    import tensorflow as tf

    variable, other = tf.Variable([1.0]), tf.Variable([1.0])
    before = value_key(variable)
    assert before != value_key(other)
    variable.assign([2.0])
    assert value_key(variable) == before


@pytest.mark.parametrize("make", [object, lambda: operator.itemgetter(0)])
def test_opaque_objects_are_compared_by_identity(make):
    one, other = make(), make()
    assert value_key(one) == value_key(one) != value_key(other)


def test_same_compares_by_identity_after_deletion():
    one, other = Settings(), Settings()
    same = Same(one)
    assert same == Same(one)
    assert hash(same) == hash(Same(one))
    assert same != Same(other)
    assert same != one
    again, address = Same(one), id(one)
    del one
    gc.collect()
    assert same != again
    assert hash(same) == address


def test_same_distinguishes_objects_at_a_reused_address():
    class FixedSize:
        __slots__ = ("__weakref__",)

    for _ in range(100):
        value = FixedSize()
        same, address = Same(value), id(value)
        del value
        value = FixedSize()
        if id(value) == address:
            break
    assert id(value) == address
    assert hash(same) == hash(Same(value))
    assert same != Same(value)


def test_same_holds_objects_without_weak_references():
    value = object()
    same, again = Same(value), Same(value)
    del value
    assert same == again


class OwnLayer(layers.Layer):
    def __init__(self):
        super().__init__()
        self.factor = 2.0
        self._factor = 2.0
        self.table = np.ones(3)
        self.nested = {"inner": [layers.Dense(3)]}
        self.held = types.SimpleNamespace(layer=layers.Dropout(0.5), variable=keras.Variable(1.0))
        # Names that only models use internally.
        self.loss = 2.0
        self.history = 2.0

    def build(self, shape):
        self.nested["inner"][0].build(shape)

    def call(self, x):
        x = self.held.layer(self.nested["inner"][0](x)) * self.held.variable
        return x * self.factor + self._factor + self.table

    def compute_output_shape(self, shape):
        return (*shape[:-1], 3)


class OwnDense(layers.Dense):
    pass


class OwnModel(keras.Model):
    def __init__(self):
        super().__init__()
        self.factor = 2.0
        self._factor = 2.0
        self.first = layers.Dense(3)
        self.own = OwnLayer()
        self.metric = keras.metrics.Mean()

    def call(self, x, training=None):
        return self.own(self.first(x)) * self.factor * self._factor


def sequential():
    parts = [
        layers.Normalization(),
        layers.Dense(3, activation="relu"),
        layers.BatchNormalization(),
        layers.Dropout(0.5),
        OwnLayer(),
        layers.Dense(3),
    ]
    parts[0].adapt(np.arange(8.0).reshape(4, 2))
    return keras.Sequential([keras.Input((2,)), *parts])


def functional():
    x = keras.Input((2,))
    shared = layers.Dense(3)
    y = shared(x) + layers.Activation("relu")(shared(x)) * 2.0
    return keras.Model(x, sequential()(keras.ops.softmax(y)[:, :2]))


def own():
    model = OwnModel()
    model(np.ones((1, 2)))
    return model


def dense():
    return keras.Sequential([keras.Input((2,)), layers.Dense(3), layers.Dense(3)])


MODELS = [sequential, functional, own]


def all_layers(model, kind):
    parts = [model, *model._flatten_layers(include_self=False)]
    return [part for part in parts if isinstance(part, kind)]


def with_layer(kind, change):
    return lambda model: change(all_layers(model, kind)[0])


def quantize(model):
    with warnings.catch_warnings(action="ignore"):  # Input layers cannot be quantized.
        model.quantize("int8")


def setting(name, value):
    return lambda layer: setattr(layer, name, value)


CHANGES = {
    "pop": (sequential, lambda model: model.pop()),
    "add": (sequential, lambda model: model.add(layers.ReLU())),
    "swap": (sequential, lambda model: model.add((model.pop(), layers.Dense(3))[1])),
    "adapt": (sequential, with_layer(layers.Normalization, lambda x: x.adapt(np.eye(2)))),
    "activation": (
        sequential,
        with_layer(layers.Dense, setting("activation", keras.activations.tanh)),
    ),
    "rate": (sequential, with_layer(layers.Dropout, setting("rate", 0.1))),
    "rate_in_a_model": (functional, with_layer(layers.Dropout, setting("rate", 0.1))),
    "momentum": (sequential, with_layer(layers.BatchNormalization, setting("momentum", 0.1))),
    "trainable": (sequential, with_layer(layers.BatchNormalization, setting("trainable", False))),
    "quantize": (dense, quantize),
    "enable_lora": (sequential, with_layer(layers.Dense, lambda layer: layer.enable_lora(2))),
    "dtype_policy": (sequential, with_layer(layers.Dense, setting("dtype_policy", "bfloat16"))),
    "autocast": (sequential, with_layer(layers.Dense, setting("autocast", False))),
    "call": (sequential, with_layer(layers.Dense, setting("call", lambda x: x))),
    "call_of_the_model": (own, lambda model: setattr(model, "call", lambda x: x)),
    "own_attribute": (own, setting("factor", 3.0)),
    "own_private_attribute": (own, setting("_factor", 3.0)),
    "new_attribute": (own, setting("_else", 3.0)),
    "other_layer": (own, lambda model: setattr(model.own.held, "layer", layers.Dropout(0.5))),
    "other_variable": (
        own,
        lambda model: setattr(model.own.held, "variable", keras.Variable(1.0)),
    ),
    "layer_attribute": (sequential, with_layer(OwnLayer, setting("factor", 3.0))),
    "layer_private_attribute": (own, with_layer(OwnLayer, setting("_factor", 3.0))),
    "layer_array": (own, with_layer(OwnLayer, setting("table", np.zeros(3)))),
    "layer_array_in_place": (own, with_layer(OwnLayer, lambda layer: layer.table.fill(0.0))),
    "layer_loss": (own, with_layer(OwnLayer, setting("loss", 3.0))),
    "layer_history": (own, with_layer(OwnLayer, setting("history", 3.0))),
    "layer_in_an_object": (own, lambda model: setattr(model.own.held.layer, "rate", 0.1)),
    "activity_regularizer": (
        sequential,
        with_layer(layers.Dense, setting("activity_regularizer", "l2")),
    ),
    "masking": (sequential, with_layer(layers.Dense, setting("supports_masking", False))),
    "class": (own, with_layer(layers.Dense, setting("__class__", OwnDense))),
    "layer_in_containers": (
        own,
        lambda model: setattr(model.own.nested["inner"][0], "activation", keras.ops.relu),
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_of_the_structure_changes_the_key(name):
    make, change = CHANGES[name]
    model = make()
    before = structure_key(model)
    assert structure_key(model) == before
    change(model)
    assert structure_key(model) != before
    assert structure_key(model) == value_key(model)


def test_a_weight_that_is_not_an_attribute_counts():
    class Unnamed(layers.Layer):
        def build(self, shape):
            self.add_weight(shape=(3,))

    layer = Unnamed()
    before = structure_key(layer)
    layer.build((None, 3))
    assert structure_key(layer) != before


def test_building_a_metric_does_not_change_the_key():
    layer = layers.Layer()
    layer.metric = keras.metrics.F1Score()
    before = structure_key(layer)
    layer.metric.update_state(np.eye(2), np.eye(2))
    assert structure_key(layer) == before
    layer.metric = keras.metrics.F1Score()
    assert structure_key(layer) != before


def test_a_reverted_change_restores_the_key():
    model = sequential()
    before = structure_key(model)
    dropout = all_layers(model, layers.Dropout)[0]
    dropout.rate = 0.1
    dropout.rate = 0.5
    assert structure_key(model) == before


def test_operations_of_a_functional_model_count():
    class Times(keras.Operation):
        factor = 2.0

        def call(self, x):
            return x * self.factor

        def compute_output_spec(self, x):
            return keras.KerasTensor(x.shape, x.dtype)

    x, times = keras.Input((2,)), Times()
    model = keras.Model(x, times(x))
    before = structure_key(model)
    keras.Sequential([keras.Input((2,)), model])
    assert structure_key(model) == before
    times.factor = 3.0
    assert structure_key(model) != before


def test_key_of_a_layer():
    layer = layers.Dropout(0.5)
    before = structure_key(layer)
    assert structure_key(layers.Dropout(0.5)) != before
    layer.rate = 0.1
    assert structure_key(layer) != before


X, Y = np.random.default_rng(0).random((4, 2), "float32"), np.arange(4) % 3


def compile_model(model, optimizer="sgd", **kwargs):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss, metrics=["accuracy"], **kwargs)


def fit(model, **kwargs):
    model.fit(X, Y, verbose=0, **kwargs)


def recompile_and_fit(model):
    compile_model(model, "adam", run_eagerly=True)
    fit(model, callbacks=[keras.callbacks.EarlyStopping("loss"), keras.callbacks.History()])


def assign_weights(model):
    """Assigns trainable weights only, as those of `Normalization` are constants."""
    for variable in model.trainable_variables:
        variable.assign(variable * 0.0)
    model.set_weights(model.get_weights())


def save_and_load_weights(model, path):
    model.save_weights(path / "m.weights.h5")
    model.load_weights(path / "m.weights.h5")


def build_a_metric(model):
    """Builds a new metric, and that of the model."""
    for metric in (keras.metrics.Accuracy(), getattr(model, "metric", keras.metrics.Mean())):
        metric.update_state([1.0], [1.0])


# Uses that do not change the structure, applied to one model in this order.
KEEPS = {
    "call": lambda model, path: model(X),
    "call_in_training": lambda model, path: model(X, training=True),
    "predict_before_compile": lambda model, path: model.predict(X, verbose=0),
    "compile": lambda model, path: compile_model(model),
    "fit": lambda model, path: fit(model),
    "evaluate": lambda model, path: model.evaluate(X, Y, verbose=0),
    "predict": lambda model, path: model.predict(X, verbose=0),
    "train_on_batch": lambda model, path: model.train_on_batch(X, Y),
    "test_on_batch": lambda model, path: model.test_on_batch(X, Y),
    "fit_with_validation": lambda model, path: fit(model, validation_data=(X, Y)),
    "recompile": lambda model, path: recompile_and_fit(model),
    "assign_weights": lambda model, path: assign_weights(model),
    "save_and_load_weights": save_and_load_weights,
    "save": lambda model, path: model.save(path / "m.keras"),
    "get_config": lambda model, path: model.get_config(),
    "build_a_metric": lambda model, path: build_a_metric(model),
    "summary": lambda model, path: model.summary(print_fn=lambda *args, **kwargs: None),
    "attach": lambda model, path: keras.Sequential([keras.Input((2,)), model]),
    "attach_layers": lambda model, path: [
        keras.Sequential([keras.Input((2,)), layer])
        for layer in model.layers
        if isinstance(layer, layers.Dense) and layer.kernel.shape[0] == 2
    ],
}


if keras.backend.backend() == "tensorflow":
    KEEPS["export"] = lambda model, path: model.export(path / "export", verbose=False)


@pytest.mark.slow
@pytest.mark.parametrize("make", MODELS)
def test_use_of_a_model_does_not_change_the_key(make, tmp_path):
    model = make()
    before = structure_key(model)
    changed = []
    for name, use in KEEPS.items():
        use(model, tmp_path)
        if structure_key(model) != before:
            changed.append(name)
            before = structure_key(model)
    assert changed == []


def test_keys_do_not_keep_models_alive():
    model = sequential()
    compile_model(model)
    found = {structure_key(model), value_key(factory(model))}
    reference = weakref.ref(model)
    del model
    keras.backend.clear_session()
    gc.collect()
    assert reference() is None
    assert len(found) == 2


def test_keys_do_not_affect_automatic_names():
    keys._attributes_of_keras.cache_clear()
    keras.backend.clear_session()
    structure_key(layers.ReLU(name="named"))
    assert (keras.Model().name, layers.Layer().name) == ("model", "layer")
