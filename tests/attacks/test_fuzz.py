"""For any input, attacks return finite images in the ball and bounds, or raise `ValueError`."""

import inspect

import attack_table
import keras
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from keras import ops

import keras_robust as kr

pytestmark = pytest.mark.slow_on_jax

NOT_FUZZED = {
    "Attack": "the base class",
    "AttackResult": "not an attack",
    "RoundResult": "not an attack",
    "AutoAttack": "an Ensemble of attacks that are all in the table",
    "Ensemble": "its attacks are in the table",
    "BPDA": "an objective",
    "WNLLSurrogate": "an objective",
}
# The first attack of each class.
ATTACKS = {type(attack).__name__: attack for attack in reversed(attack_table.ATTACKS)}
ATTACKS = {name: attack for name, attack in ATTACKS.items() if name not in NOT_FUZZED}
# Arguments of the attacks that are fuzzed: untargeted, on the model itself.
PLAIN = {
    "objective": None, "from_logits": True, "num_samples": 1, "targeted": False, "step_size": None,
}  # fmt: skip
DTYPES = ("float16", "bfloat16", "float32", "float64", "uint8", "int64")
EPS = {"float16": 2.0**-10, "bfloat16": 2.0**-7, "float32": 2.0**-23, "float64": 2.0**-52}
NUM_CLASSES = 4
ODD_NUMBERS = (0.0, -0.1, float("nan"), float("inf"), 1e-30, 1e-6, 1e6)

epsilons = st.one_of(st.floats(0.001, 2.0), st.sampled_from(ODD_NUMBERS))
bounds = st.one_of(
    st.just((0.0, 1.0)),
    st.sampled_from([(-1.0, 1.0), (-2.5, 2.0), (0.0, 255.0), (1.0, 0.0), (0.0, float("nan"))]),
)
shapes = st.sampled_from([(3, 7), (1, 4, 4, 1), (2, 5, 3, 3), (4, 6, 2), (0, 5), (5,)])
labels = st.sampled_from(["int", "int64", "uint8", "column", "one_hot", "smooth", "float", "wide"])
placements = st.sampled_from(["inside", "at the bounds", "outside", "nan", "constant"])


def classifier(x):
    """Computes four smooth scores of an input of any shape."""
    flat = ops.reshape(x, (ops.shape(x)[0], -1))
    flat = ops.cast(flat, "float32") if flat.dtype != "float64" else flat
    position = ops.arange(flat.shape[1], dtype=flat.dtype)
    waves = ops.cos(position[:, None] * ops.arange(1, NUM_CLASSES + 1, dtype=flat.dtype))
    return ops.tanh(ops.matmul(flat, waves)) + 0.1 * ops.matmul(flat, waves)


def fuzzed(name, epsilon, bounds):
    """Returns an attack of the table with this radius, or standard deviation, and bounds."""
    changes = {**PLAIN, "epsilon": epsilon, "stddev": epsilon, "bounds": bounds}
    known = ATTACKS[name].arguments
    return ATTACKS[name].replace(**{k: v for k, v in changes.items() if k in known})


def images(shape, dtype, bounds, place, rng):
    low, high = bounds if bounds[0] < bounds[1] else (0.0, 1.0)
    x = rng.uniform(low, high, shape)
    if place == "at the bounds":
        x = np.where(x > (low + high) / 2, high, low)
    elif place == "constant":
        x = np.full(shape, high)
    elif x.size and place in ("outside", "nan"):
        x.flat[0] = 2 * high - low if place == "outside" else np.nan
    if dtype in ("uint8", "int64"):
        x = np.nan_to_num(x)
    return ops.convert_to_numpy(ops.cast(x.astype("float32"), dtype)) if dtype == "bfloat16" else (
        x.astype(dtype)
    )  # fmt: skip


def label_array(form, num, rng):
    y = rng.integers(0, NUM_CLASSES, num)
    one_hot = np.eye(NUM_CLASSES, dtype="float32")[y]
    return {
        "int": y.astype("int32"),
        "int64": y,
        "uint8": y.astype("uint8"),
        "column": y[:, None],
        "one_hot": one_hot,
        "smooth": 0.9 * one_hot + 0.1 / NUM_CLASSES,
        "float": y.astype("float32"),
        "wide": y + NUM_CLASSES,
    }[form]


def test_every_attack_is_in_the_table():
    public = {name for name, value in vars(kr.attacks).items() if inspect.isclass(value)}
    assert public == set(ATTACKS) | set(NOT_FUZZED)


# Implausible radii cause a warning.
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*It is in the units of the images:UserWarning")
@pytest.mark.parametrize("name", ATTACKS)
@settings(
    max_examples=20,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(
    epsilon=epsilons,
    bounds=bounds,
    shape=shapes,
    dtype=st.sampled_from(DTYPES),
    form=labels,
    place=placements,
    seed=st.integers(0, 2**40),
)
def test_a_valid_result_or_a_value_error(name, epsilon, bounds, shape, dtype, form, place, seed):
    if dtype == "float64" and keras.backend.backend() == "jax":
        dtype = "float32"
    rng = np.random.default_rng(seed)
    try:
        attack = fuzzed(name, epsilon, bounds)
        x = images(shape, dtype, bounds, place, rng)
        result = attack.run(classifier, x, label_array(form, len(x), rng), seed=seed)
    except ValueError as error:
        if "Received: " not in str(error) and "NaN or infinite" not in str(error):
            raise
        return
    assert bounds[0] < bounds[1]
    norm = attack.norm if "epsilon" in attack.arguments else None
    assert epsilon >= 0 or norm is None
    assert place not in ("outside", "nan")
    assert form not in ("float", "wide")
    x_adv = result.x_adv
    assert (x_adv.dtype, x_adv.shape) == (x.dtype, x.shape)
    wide = x_adv.astype("float64")
    assert np.isfinite(wide).all()
    low, high = np.array(bounds, "float32").astype(x.dtype).astype("float64")
    assert wide.min() >= low
    assert wide.max() <= high
    rounding = EPS[dtype]
    rounding *= max(1.0, *map(abs, bounds)) * 2
    if norm is not None:
        slack = rounding * (np.sqrt(x[0].size) if norm == "l2" else 1)
        assert result.norms[norm].max() <= epsilon * (1 + 1e-6) + slack
    for values in (result.success, result.num_gradients, result.num_evaluations):
        assert values.shape == (len(x),)
    assert (result.norms["linf"][~result.success] == 0).all()
