"""Training on several devices: MirroredStrategy on TensorFlow, DataParallel on JAX."""

import keras
import numpy as np
import pytest


@pytest.fixture(scope="module")
def results(results_of):
    return results_of("distributed_training.py")


@pytest.mark.slow
def test_two_devices_equal_one(results):
    # Four weights (eight with batch norm), and accuracy and loss on training and validation data.
    assert len(results) == 2 * (8 + 12) + 1
    for index in range(8 + 12):
        np.testing.assert_allclose(
            results[f"two_{index}"], results[f"one_{index}"], rtol=1e-4, atol=1e-5
        )
    assert results["one_5"][1] < results["one_5"][0]


@pytest.mark.slow
@pytest.mark.skipif(
    keras.backend.backend() == "jax", reason="one program computes the whole batch on JAX"
)
def test_replicas_draw_different_noise(results):
    first, second = results["seen"]
    assert first.shape == second.shape == (16, 8, 8, 1)
    assert (first != second).mean() > 0.5
    assert abs(first - second).max() < 0.2 + 1e-6
