"""A WNLL head on several devices: MirroredStrategy on TensorFlow, DataParallel on JAX."""

import keras
import numpy as np
import pytest

pytestmark = pytest.mark.slow_on_jax

RUNS = ["end_to_end", "separate", "joint"]


@pytest.fixture(scope="module")
def results(results_of):
    """Returns the results by number of devices and kind of training."""
    found = {}
    for path, value in results_of("distributed_wnll.py").items():
        devices, run, name = path.split("/")
        found.setdefault((devices, run), {})[name] = value
    return found


@pytest.mark.slow
@pytest.mark.parametrize("run", RUNS)
def test_two_devices_equal_one(results, run):
    """On TensorFlow, each replica gets the same batch as the single device."""
    one, two = results["one", run], results["two", run]
    assert one.keys() == two.keys()
    for name, expected in one.items():
        is_weight = name.startswith("weight")
        value, expected = (two[name][0], expected[0]) if is_weight else (two[name], expected)
        np.testing.assert_allclose(value, expected, rtol=1e-3, atol=1e-4, err_msg=name)
    assert np.isfinite(two["loss"]).all()
    assert two["loss"][1] != two["loss"][0]  # The weights have changed.


@pytest.mark.slow
@pytest.mark.skipif(keras.backend.backend() == "jax", reason="JAX has one sharded array")
@pytest.mark.parametrize("run", RUNS)
def test_replicas_have_the_same_weights_and_template(results, run):
    weights = [value for name, value in results["two", run].items() if name.startswith("weight")]
    # Three kernels and biases. The head has template, labels, two lists, a copy of the kernel and
    # bias of its block, `phase` and `joint`.
    assert len(weights) == 6 + 8
    for copies in weights:
        assert len(copies) == 2
        np.testing.assert_array_equal(copies[1], copies[0])
