"""Shared fixtures of the integration tests, which train models."""

import os
import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest

import keras_robust as kr


def _make_base(batch_norm=False, policy=None):
    """Returns a small smooth classifier of 8 x 8 images. Its weights are always the same."""
    keras.utils.set_random_seed(1)
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Flatten(),
            keras.layers.Dense(16, activation="tanh", dtype=policy),
            *([keras.layers.BatchNormalization(momentum=0.5)] if batch_norm else []),
            keras.layers.Dense(10, dtype=policy),
        ]
    )


def _make_robust(loss, base=None, optimizer=None, seed=3, **compile_arguments):
    """Returns a compiled `kr.RobustModel`. Its weights are always the same."""
    robust = kr.RobustModel(base or _make_base(), seed=seed)
    # Adam would divide by the gradient's size, which enlarges rounding errors.
    robust.compile(optimizer=optimizer or keras.optimizers.SGD(0.5), loss=loss, **compile_arguments)
    return robust


def _assert_same_weights(model, other, rtol=1e-5, atol=1e-5):
    """Asserts that all weights of two models, or two lists of arrays, agree."""
    pairs = [m.get_weights() if isinstance(m, keras.Model) else m for m in (model, other)]
    assert len(pairs[0]) == len(pairs[1]) > 0
    for ours, theirs in zip(*pairs, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=rtol, atol=atol)


def _distance(model, other):
    """Returns the largest difference between the weights of two models, or lists of arrays."""
    pairs = [m.get_weights() if isinstance(m, keras.Model) else m for m in (model, other)]
    return max(float(abs(a - b).max()) for a, b in zip(*pairs, strict=True))


@pytest.fixture(scope="session", autouse=True)
def _compile_once(tmp_path_factory):
    """Caches JAX's compilations, because many tests compile the same step."""
    if keras.backend.backend() == "jax":
        import jax

        jax.config.update("jax_compilation_cache_dir", str(tmp_path_factory.mktemp("jax")))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)


@pytest.fixture(scope="session")
def results_of(tmp_path_factory):
    """Runs a script that uses two devices, and returns the arrays that it saves.

    The script runs in a separate process, because devices must be set up before any computation.
    """

    def run(script):
        file = tmp_path_factory.mktemp("distribution") / "results.npz"
        process = subprocess.run(
            [sys.executable, pathlib.Path(__file__).with_name(script), file],
            env={**os.environ, "KERAS_BACKEND": keras.backend.backend()},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert process.returncode == 0, process.stderr
        with np.load(file) as arrays:
            return dict(arrays)

    return run


@pytest.fixture
def make_base():
    return _make_base


@pytest.fixture
def make_robust():
    return _make_robust


@pytest.fixture
def assert_same_weights():
    return _assert_same_weights


@pytest.fixture
def distance():
    return _distance


@pytest.fixture
def attack():
    """Returns a strong PGD in L2. In L-infinity, its sign would enlarge rounding errors."""
    return kr.attacks.PGD(epsilon=2.0, norm="l2", num_steps=3)


@pytest.fixture(params=["AdversarialTraining", "TRADES"])
def loss(request, attack):
    """Returns each of the losses that attack the model."""
    if request.param == "TRADES":
        # Very close to the image, the gradient of the divergence is mostly rounding error.
        return kr.losses.TRADES(attack, start_stddev=0.05)
    return kr.losses.AdversarialTraining(attack)


@pytest.fixture
def easy_data():
    """Returns 96 images of 3 classes, which a linear model separates even under a small attack."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 96)
    patterns = rng.choice([0.3, 0.7], (3, 8, 8, 1))
    x = np.clip(patterns[y] + 0.05 * rng.standard_normal((96, 8, 8, 1)), 0, 1)
    return x.astype("float32"), y
