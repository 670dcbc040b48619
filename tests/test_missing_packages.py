"""The error for a missing package comes before any work, and names the extra to install."""

import os
import pathlib
import re
import subprocess
import sys

import keras
import numpy as np
import pytest

import keras_robust as kr
from keras_robust.cli import main
from keras_robust.cli.data import load_data
from keras_robust.cli.options import parser

ROOT = pathlib.Path(__file__).parent.parent
RNG = np.random.default_rng(0)
X, Y = RNG.random((8, 4, 4, 1), "float32"), np.arange(8) % 2
BACKENDS = ("tensorflow", "jax")


def extra(name):
    return rf"pip install 'keras-robust\[{name}\]'"


def model():
    return keras.Sequential([keras.Input((4, 4, 1)), keras.layers.Flatten(), keras.layers.Dense(2)])


class Never(kr.attacks.FGSM):
    def run_checked(self, *args, **kwargs):
        raise AssertionError


@pytest.fixture
def without(monkeypatch):
    """Makes modules appear to be missing."""

    def without(*names):
        for name in names:
            monkeypatch.setitem(sys.modules, name, None)

    return without


def test_matplotlib_for_a_report(without, tmp_path):
    without("matplotlib")
    folder = tmp_path / "report"
    with pytest.raises(ImportError, match=extra("plots")):
        kr.evaluate(model(), X, Y, Never(0.1), output=folder, verbose=0)
    assert not folder.exists()


def test_scikit_learn_for_plots_of_features(without, tmp_path):
    without("sklearn")
    folder = tmp_path / "report"
    with pytest.raises(ImportError, match=extra("analysis")):
        kr.evaluate(model(), X, Y, Never(0.1), output=folder, pictures=True, verbose=0)
    assert not folder.exists()


def test_scipy_for_certificates(without, tmp_path):
    without("scipy")
    folder = tmp_path / "certificate"
    never = kr.BlackBox(lambda x: 1 / 0)
    with pytest.raises(ImportError, match=extra("certify")):
        kr.evaluation.certify(never, X, Y, stddev=0.1, output=folder, verbose=0)
    assert not folder.exists()


def test_matplotlib_for_plots(without, tmp_path):
    without("matplotlib")
    path = tmp_path / "curves.png"
    with pytest.raises(ImportError, match=extra("plots")):
        kr.evaluation.plot_curves({"model": {0.0: 1.0, 0.1: 0.5}}, path)


def test_tensorflow_for_a_saved_model(without, tmp_path):
    robust, path = kr.RobustModel(model()), tmp_path / "exported"
    without("tensorflow")
    with pytest.raises(ImportError, match=extra("tensorflow")):
        robust.export(str(path))
    assert not path.exists()


def test_tensorflow_datasets_for_the_command(without, tmp_path, capsys):
    path = str(tmp_path / "model.keras")
    model().save(path)
    without("tensorflow_datasets")
    attack = ["--attack", "fgsm", "--epsilon", "0.1"]
    assert main(["evaluate", path, "--dataset", "mnist", *attack]) == 2
    message = capsys.readouterr().err
    assert message.startswith("keras-robust: error: --dataset mnist: ")
    assert re.search(extra("datasets"), message)
    assert message.count("\n") == 1


def test_tensorflow_for_a_folder_of_images(without, tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    argv = ["evaluate", "m.keras", "--data", str(tmp_path), "--attack", "fgsm"]
    options, classifier = parser().parse_args(argv), model()
    without("tensorflow")
    with pytest.raises(ValueError, match=extra("tensorflow")) as error:
        load_data(options, classifier)
    assert str(error.value).startswith(f"--data {tmp_path}: ")


# For a new process, because the process of the tests has imported the backend.
WITHOUT = "import sys; sys.modules[{name!r}] = None; "


def run(code, name):
    environment = {n: value for n, value in os.environ.items() if n != "TF_CPP_MIN_LOG_LEVEL"}
    return subprocess.run(
        [sys.executable, "-c", WITHOUT.format(name=name) + code],
        env={**environment, "KERAS_BACKEND": name},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize("name", BACKENDS)
def test_a_missing_backend(name):
    found = run("import keras_robust", name)
    assert found.returncode == 1
    message = found.stderr.splitlines()[-1]
    assert message.startswith(f"ImportError: Keras's backend is {name!r}, which is not installed.")
    assert f"pip install 'keras-robust[{name}]'" in message
    (other,) = set(BACKENDS) - {name}
    assert f"KERAS_BACKEND to {other!r}" in message


@pytest.mark.parametrize("name", BACKENDS)
def test_a_missing_backend_of_the_command(name):
    """The installed script prints one line, with the exit status of bad input."""
    found = run(
        "import keras_robust_command as c; sys.argv[1:] = ['--version']; sys.exit(c.main())", name
    )
    assert found.returncode == 2
    assert found.stderr.startswith("keras-robust: error: Keras's backend is ")
    assert f"pip install 'keras-robust[{name}]'" in found.stderr
    assert found.stderr.count("\n") == 1
    assert found.stdout == ""
