"""Training in two processes, as on two machines: `DataParallel` on JAX."""

import os
import pathlib
import socket
import subprocess
import sys

import keras
import numpy as np
import pytest

PROGRAM = pathlib.Path(__file__).with_name("two_processes.py")
pytestmark = [
    pytest.mark.slow_on_jax,
    pytest.mark.skipif(
        keras.backend.backend() != "jax",
        reason="Keras 3 trains on one machine with TensorFlow",
    ),
]


def start(*arguments):
    return subprocess.Popen(
        [sys.executable, PROGRAM, *map(str, arguments)],
        env=os.environ | {"KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu"},
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(*processes):
    try:
        for process in processes:
            errors = process.communicate(timeout=300)[1]
            assert process.returncode == 0, errors
    finally:
        for process in processes:
            process.kill()


def test_two_processes_equal_one(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    files = [tmp_path / f"{name}.npz" for name in ("one", "first", "second")]
    finish(start(files[0]))
    finish(*(start(file, address, number) for number, file in enumerate(files[1:])))
    one, first, second = (np.load(file) for file in files)
    assert len(one.files) == len(first.files) > 20
    for name in one.files:
        np.testing.assert_allclose(first[name], one[name], rtol=1e-3, atol=1e-4, err_msg=name)
        np.testing.assert_array_equal(first[name], second[name])
    for case in ("adversarial training", "TRADES"):
        losses = one[f"{case}/4"]
        assert losses.shape == (3,)
        assert losses[-1] < losses[0]
