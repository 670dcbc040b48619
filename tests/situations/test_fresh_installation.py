"""The package that pip installs from this repository loads data sets and has its command."""

import os
import pathlib
import shutil
import subprocess
import sys

import pytest

import keras_robust as kr

ROOT = pathlib.Path(__file__).parent.parent.parent

# For a module of a package, like the data sets of TensorFlow Datasets.
DATA_SET = """
import numpy as np
import tensorflow_datasets as tfds


class Tiny(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = {
            "image": tfds.features.Image(shape=(4, 4, 1)),
            "label": tfds.features.ClassLabel(num_classes=2),
        }
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(features), supervised_keys=("image", "label")
        )

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(6), "test": self._generate_examples(4)}

    def _generate_examples(self, count):
        for n in range(count):
            yield n, {"image": np.full((4, 4, 1), 51 * n, "uint8"), "label": n % 2}
"""
LOAD = """
import tiny_data.tiny
import keras_robust as kr

data = kr.datasets.load("tiny", "test", data_dir="data")
found = sorted((round(float(image[0, 0, 0]), 6), int(label)) for image, label in data)
print(found, kr.__file__)
"""


WITHOUT_TENSORFLOW = """
import importlib.util
import keras
import keras_robust as kr

assert importlib.util.find_spec("tensorflow") is None
assert importlib.util.find_spec("matplotlib") is None
train = kr.datasets.load("fashion_mnist_subset", "train").take(64).shuffle(seed=0).batch(32)
model = kr.RobustModel(keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(10)]))
model.compile("sgd", kr.losses.AdversarialTraining(kr.attacks.FGSM(0.1)))
losses = model.fit(train, verbose=0, shuffle=False).history["loss"]
report = kr.evaluate(model, train, attacks=kr.attacks.FGSM(0.1), checks=False, verbose=0)
print([images.shape for images, _ in train], losses[0] > 0, report.num_examples, kr.__file__)
"""


@pytest.fixture
def installed(tmp_path):
    """Installs the package with an extra in a new environment. Returns a function to run there."""

    def install(extra, **settings):
        source = tmp_path / "source"
        source.mkdir()
        for name in ("pyproject.toml", "README.md", "LICENSE", "keras_robust_command.py"):
            shutil.copy(ROOT / name, source)
        shutil.copytree(ROOT / "keras_robust", source / "keras_robust")
        unset = ("PYTHONPATH", "TF_CPP_MIN_LOG_LEVEL", "TFDS_DATA_DIR", "KERAS_BACKEND")
        variables = {n: value for n, value in os.environ.items() if n not in unset} | settings

        def run(program, *arguments):
            finished = subprocess.run(
                [program, *arguments], cwd=tmp_path, env=variables, capture_output=True, text=True
            )
            assert finished.returncode == 0, finished.stderr
            return finished

        run(sys.executable, "-m", "venv", "fresh")
        programs = tmp_path / "fresh" / ("Scripts" if os.name == "nt" else "bin")
        run(programs / "python", "-m", "pip", "install", "--quiet", f"{source}[{extra}]")
        shutil.rmtree(source)
        return lambda program, *arguments: run(programs / program, *arguments)

    return install


def assert_the_command_works(run):
    version = run("keras-robust", "--version")
    assert version.stdout.startswith(f"keras-robust {kr.__version__}, keras ")
    assert version.stderr == ""


@pytest.mark.slow
def test_with_tensorflow_datasets(installed, tmp_path):
    run = installed("datasets")
    (tmp_path / "tiny_data").mkdir()
    (tmp_path / "tiny_data" / "__init__.py").touch()
    (tmp_path / "tiny_data" / "tiny.py").write_text(DATA_SET)
    loaded = run("python", "-c", LOAD).stdout.splitlines()[-1]
    assert loaded.startswith("[(0.0, 0), (0.2, 1), (0.4, 0), (0.6, 1)] ")
    assert str(tmp_path / "fresh") in loaded
    assert_the_command_works(run)


@pytest.mark.slow
def test_with_jax_and_without_tensorflow(installed, tmp_path):
    run = installed("jax", KERAS_BACKEND="jax")
    found = run("python", "-c", WITHOUT_TENSORFLOW).stdout.splitlines()[-1]
    assert found.startswith("[(32, 28, 28, 1), (32, 28, 28, 1)] True 64 ")
    assert str(tmp_path / "fresh") in found
    assert_the_command_works(run)
