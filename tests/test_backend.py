"""Compiled functions are traced once, and are freed with their model."""

import gc
import os
import weakref

import keras
import numpy as np
import pytest
from keras import ops

import keras_robust as kr
from keras_robust import backend
from keras_robust.backend import cache

X = np.full((4, 2, 2, 1), 0.5, "float32")
Y = np.zeros(4, "int32")


def make_model():
    return keras.Sequential([keras.Input((2, 2, 1)), keras.layers.Flatten(), keras.layers.Dense(2)])


class Counted(kr.attacks.FGSM):
    """FGSM that counts how often it is traced."""

    traces = 0

    def generate(self, *args):
        Counted.traces += 1
        return super().generate(*args)


def test_a_function_is_traced_once_per_model_and_shape():
    # On JAX, a first trace collects the variables that the compiled function uses.
    traces = {"tensorflow": 1, "jax": 2}[keras.backend.backend()]
    batch_sizes = 1 if backend.DYNAMIC_BATCH else 2
    Counted.traces = 0
    model, other = make_model(), make_model()
    for _ in range(3):
        Counted(0.1)(model, X, Y)
    assert Counted.traces == traces
    Counted(0.1)(model, X[:2], Y[:2])
    Counted(0.2)(model, X, Y)
    Counted(0.1)(other, X, Y)
    assert Counted.traces == (1 + batch_sizes) * traces


def test_new_radii_need_no_trace():
    Counted.traces = 0
    model = make_model()
    for number in range(50):
        epsilon = 0.01 * (number + 1)
        moved = Counted(epsilon)(model, X, 1 - Y if number % 2 else Y)
        assert abs(ops.convert_to_numpy(moved) - X).max() <= epsilon + 1e-6
    assert Counted.traces == {"tensorflow": 1, "jax": 2}[keras.backend.backend()]


@pytest.mark.slow
def test_the_number_of_cached_functions_is_limited(monkeypatch):
    monkeypatch.setattr(cache, "MOST", 8)
    model = make_model()
    for steps in range(1, 8):
        kr.attacks.PGD(0.1, num_steps=steps)(model, X, Y)
    assert len(cache._functions) <= 8
    Counted.traces = 0
    Counted(0.1)(model, X, Y)
    once = Counted.traces
    Counted(0.1)(model, X, Y)
    assert Counted.traces == once


def num_memory_maps():
    gc.collect()
    with open("/proc/self/maps") as file:
        return sum(1 for _ in file)


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/maps"), reason="counts Linux's memory maps")
@pytest.mark.parametrize("what", ["models", "configurations"])
def test_memory_maps_are_released(what):
    """Attacks 200 models or configurations while another model is alive."""
    other_model = make_model()
    attack = kr.attacks.PGD(0.1, num_steps=2)
    attack(other_model, X, Y)
    counts = []
    for number in range(200):
        if what == "models":
            attack(make_model(), X, Y)
        else:
            attack.replace(num_steps=2 + number)(other_model, X, Y)
        if number % 20 == 19:
            counts.append(num_memory_maps())
    limit = 300 if what == "models" else cache.MOST * 200
    assert counts[-1] - counts[0] <= limit
    assert counts[-1] < 65_530 / 2
    del other_model
    assert num_memory_maps() - counts[0] <= 600


def test_an_attacked_model_is_freed():
    model = make_model()
    kr.attacks.PGD(0.1, num_steps=2)(model, X, Y)
    reference = weakref.ref(model)
    del model
    gc.collect()
    assert reference() is None


def test_input_gradient_agrees_with_the_derivative():
    x = np.random.default_rng(0).normal(size=(3, 2)).astype("float32")
    gradient = backend.input_gradient(lambda z: ops.sum(ops.sin(z) * z), ops.convert_to_tensor(x))
    np.testing.assert_allclose(ops.convert_to_numpy(gradient), np.cos(x) * x + np.sin(x), rtol=1e-5)


def test_random_numbers_only_depend_on_the_seed():
    seed = backend.make_seed(7)
    draws = [
        ops.convert_to_numpy(backend.normal((500,), s, "float32"))
        for s in (seed, backend.make_seed(7), backend.fold_in(seed, 0), backend.fold_in(seed, 1))
    ]
    np.testing.assert_array_equal(draws[0], draws[1])
    for first, second in ((0, 2), (0, 3), (2, 3)):
        assert abs(np.corrcoef(draws[first], draws[second])[0, 1]) < 0.3
    uniform = ops.convert_to_numpy(backend.uniform((5000,), seed, -2.0, 3.0, "float32"))
    assert -2 <= uniform.min() < -1.99
    assert 2.99 < uniform.max() <= 3


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_rounded_equals_a_cast_and_back_in_a_compiled_function(dtype):
    x = np.random.default_rng(0).uniform(-3, 3, 1000).astype("float32")
    expected = ops.convert_to_numpy(ops.cast(ops.cast(x, dtype), "float32"))
    function = backend.compiled(lambda: None, dtype, lambda x: backend.rounded(x, dtype))
    result = ops.convert_to_numpy(function(x))
    np.testing.assert_array_equal(result, expected)
    assert (result != x).any() == (dtype != "float32")


def test_the_device_has_a_name():
    if any("cpu" not in name.lower() for name in keras.distribution.list_devices()):
        pytest.skip("names of GPUs are arbitrary")
    name, cores = backend.device().rsplit(", ", 1)
    assert len(name) > 2
    assert int(cores.removesuffix(" cores")) <= os.cpu_count()
