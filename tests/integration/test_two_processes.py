"""Training in two processes, as on two machines, with `DataParallel` on JAX."""

import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys

import keras
import numpy as np
import pytest

FOLDER = pathlib.Path(__file__).parent
pytestmark = [
    pytest.mark.slow_on_jax,
    pytest.mark.skipif(
        keras.backend.backend() != "jax",
        reason="Keras 3 trains on one machine with TensorFlow",
    ),
]


def start(program, *arguments, **environment):
    return subprocess.Popen(
        [sys.executable, FOLDER / program, *map(str, arguments)],
        env=os.environ | {"KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu"} | environment,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture
def address():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


def finish(*processes):
    try:
        for process in processes:
            errors = process.communicate(timeout=300)[1]
            assert process.returncode == 0, errors
    finally:
        for process in processes:
            process.kill()


def test_two_processes_equal_one(tmp_path, address):
    files = [tmp_path / f"{name}.npz" for name in ("one", "first", "second")]
    program = "two_processes.py"
    finish(start(program, files[0]))
    finish(*(start(program, file, address, number) for number, file in enumerate(files[1:])))
    one, first, second = (np.load(file) for file in files)
    assert len(one.files) == len(first.files) > 20
    for name in one.files:
        np.testing.assert_allclose(first[name], one[name], rtol=1e-3, atol=1e-4, err_msg=name)
        np.testing.assert_array_equal(first[name], second[name])
    for case in ("adversarial training", "TRADES"):
        losses = one[f"{case}/4"]
        assert losses.shape == (3,)
        assert losses[-1] < losses[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("loss", "victim"), [("adversarial training", 0), ("TRADES", 1), ("WNLL end to end", 0)]
)
def test_killed_processes_can_be_resumed(loss, victim, tmp_path, address):
    def both(folder, **environments):
        folder.mkdir(exist_ok=True)
        program = "interrupted_two_processes.py"
        return [
            start(program, folder, loss, address, number, **environments.get(f"of_{number}", {}))
            for number in range(2)
        ]

    def saved(folder):
        for number in range(2):
            with np.load(folder / f"{number}.npz") as file:
                names = [name for name in file.files if name != "num_epochs"]
                yield file["num_epochs"], [file[name] for name in names]

    uninterrupted, interrupted = tmp_path / "uninterrupted", tmp_path / "interrupted"
    finish(*both(uninterrupted))
    # Step 5 of 8 is the first of the third epoch, when two epochs have been saved.
    processes = both(interrupted, **{f"of_{victim}": {"KILL_AT_STEP": "5"}})
    try:
        errors = processes[victim].communicate(timeout=300)[1]
        assert processes[victim].returncode == -signal.SIGKILL, errors
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    assert (interrupted / "backup-0").exists()
    assert not list(interrupted.glob("*.npz"))
    shutil.rmtree(interrupted / "backup-1")  # Only the first backup is needed.
    finish(*both(interrupted))

    for (all_epochs, expected), (num_epochs, values) in zip(
        saved(uninterrupted), saved(interrupted), strict=True
    ):
        assert (all_epochs, num_epochs) == (4, 2)
        assert len(values) == len(expected) > 6
        for value, other in zip(values, expected, strict=True):
            np.testing.assert_array_equal(value, other)
