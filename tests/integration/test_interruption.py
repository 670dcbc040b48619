"""A training that was killed continues as if it had not been."""

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
    """Runs the script in a process of its own."""
    return subprocess.run(
        [sys.executable, SCRIPT, *map(str, arguments)],
        env={**os.environ, "KERAS_BACKEND": keras.backend.backend()},
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.slow
def test_backup_and_restore_after_a_kill(assert_same_weights, tmp_path):
    # Step 5 of 8 is the first of the third epoch; two epochs are on disk by then.
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

    straight, num_epochs = runpy.run_path(str(SCRIPT))["train"](tmp_path / "straight")
    assert num_epochs == 4
    # The attack starts at random: this needs the same random numbers in the last two epochs.
    assert_same_weights(weights, straight)
