"""Training on several devices: MirroredStrategy on TensorFlow, DataParallel on JAX."""

import os
import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest

SCRIPT = pathlib.Path(__file__).with_name("distributed_training.py")


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What the script found; the devices must be set up before anything else is computed."""
    file = tmp_path_factory.mktemp("distribution") / "results.npz"
    process = subprocess.run(
        [sys.executable, SCRIPT, file],
        env={**os.environ, "KERAS_BACKEND": keras.backend.backend()},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert process.returncode == 0, process.stderr
    with np.load(file) as arrays:
        return dict(arrays)


def test_two_devices_equal_one(results):
    # Four weights, then the accuracy, the loss and both on the validation data.
    assert len(results) == 2 * 8 + 1
    for index in range(8):
        np.testing.assert_allclose(
            results[f"two_{index}"], results[f"one_{index}"], rtol=1e-4, atol=1e-5
        )
    assert results["one_5"][1] < results["one_5"][0]


@pytest.mark.skipif(
    keras.backend.backend() == "jax", reason="one program computes the whole batch on JAX"
)
def test_replicas_draw_different_noise(results):
    first, second = results["seen"]
    assert first.shape == second.shape == (16, 8, 8, 1)
    assert (first != second).mean() > 0.5
    assert abs(first - second).max() < 0.2 + 1e-6
