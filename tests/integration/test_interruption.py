"""A killed training can be resumed, with the result of an uninterrupted one."""

import os
import pathlib
import runpy
import signal
import subprocess
import sys

import keras
import numpy as np
import pytest

SCRIPT = pathlib.Path(__file__).with_name("interrupted_training.py")


def run(*arguments):
    """Runs the script in a separate process."""
    return subprocess.run(
        [sys.executable, SCRIPT, *map(str, arguments)],
        env={**os.environ, "KERAS_BACKEND": keras.backend.backend()},
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.slow
def test_backup_and_restore_after_a_kill(assert_same_weights, tmp_path):
    # Step 5 of 8 is the first of the third epoch, when two epochs have been saved.
    killed = run(tmp_path, 5)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert (tmp_path / "backup").exists()
    assert not (tmp_path / "weights.npz").exists()

    resumed = run(tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    with np.load(tmp_path / "weights.npz") as file:
        num_epochs = file["num_epochs"]
        weights = [file[name] for name in file.files if name != "num_epochs"]
    assert num_epochs == 2

    uninterrupted, num_epochs = runpy.run_path(str(SCRIPT))["train"](tmp_path / "uninterrupted")
    assert num_epochs == 4
    # The attack has a random start, so the random numbers must be the same, too.
    assert_same_weights(weights, uninterrupted)
