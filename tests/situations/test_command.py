"""The command passes images in the model's range and shape, and reports errors clearly."""

import json
import os
import pathlib
import subprocess
import sys
import zipfile

import keras
import numpy as np
import pytest

import keras_robust as kr
from keras_robust.cli import main

pytestmark = pytest.mark.slow_on_jax

ROOT = pathlib.Path(__file__).parent.parent.parent
DATA = ["--dataset", "fashion_mnist_subset"]
FGSM = ["--attack", "fgsm", "--epsilon", "0.05"]
# Like the installed script.
SCRIPT = [sys.executable, "-c", "import sys, keras_robust_command as c; sys.exit(c.main())"]


@pytest.fixture(scope="module")
def path(classifier, tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "classifier.keras"
    classifier.save(path)
    return str(path)


def for_range(classifier, low, high, folder):
    """Saves a model with the same predictions for images in another range. Returns its path."""
    scale = keras.layers.Rescaling(1 / (high - low), offset=-low / (high - low))
    model = keras.Sequential([keras.Input((28, 28, 1)), scale, classifier])
    model.save(folder / "other.keras")
    return str(folder / "other.keras")


def rows_in(folder):
    return json.loads((folder / "report.json").read_text())["rows"]


def error_of(argv, capsys):
    assert main(argv) == 2
    return capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(("low", "high"), [(0, 255), (-1, 1)])
def test_images_are_scaled_to_the_bounds(low, high, classifier, embedded_data, tmp_path, capsys):
    path = for_range(classifier, low, high, tmp_path)
    argv = ["evaluate", path, *DATA, "--num-examples", "100", "--attack", "fgsm", "--no-checks"]
    argv += ["--epsilon", str(0.05 * (high - low)), "--bounds", str(low), str(high)]
    assert main([*argv, "--output", str(tmp_path)]) == 0
    x, y = (values[:100] for values in embedded_data[1])
    model = keras.saving.load_model(path)
    attack = kr.attacks.FGSM(0.05 * (high - low), bounds=(low, high))
    there = kr.evaluate(model, low + (high - low) * x, y, attack, checks=False, verbose=0)
    assert rows_in(tmp_path) == there.to_dict()["rows"]
    # They agree with the classifier on images from 0 to 1.
    here = kr.evaluate(classifier, x, y, kr.attacks.FGSM(0.05), checks=False, verbose=0)
    assert abs(there.accuracy("clean") - here.accuracy("clean")) <= 0.01
    assert abs(there.accuracy("worst case") - here.accuracy("worst case")) <= 0.02
    assert there.accuracy("clean") > 0.6
    assert f"scaled to {low} to {high}" in (tmp_path / "report.html").read_text()


def test_stored_integer_images_are_restored_exactly(embedded_data, tmp_path):
    from keras_robust.cli.data import load_data
    from keras_robust.cli.options import parser

    argv = ["evaluate", "m.keras", *DATA, "--attack", "fgsm", "--bounds", "0", "255"]
    x = load_data(parser().parse_args(argv), model=None).x
    assert x.dtype == np.float32
    np.testing.assert_array_equal(x, np.round(255 * embedded_data[1][0].astype("float64")))


@pytest.mark.slow
def test_images_in_a_wrong_range_fail_a_check(classifier, tmp_path, capsys):
    path = for_range(classifier, 0, 255, tmp_path)
    argv = ["evaluate", path, *DATA, "--num-examples", "400", "--attack", "deepfool"]
    assert main([*argv, "--output", str(tmp_path)]) == 3
    printed = capsys.readouterr().out
    assert rows_in(tmp_path)[0]["accuracy"] < 0.15
    assert "FAILED: clean accuracy is above chance." in printed
    assert "the value range and the format of its training images" in printed


@pytest.mark.filterwarnings("default::UserWarning")
@pytest.mark.parametrize(
    ("options", "remark"),
    [
        (["--bounds", "0", "255", "--epsilon", "8/255"], "less than a thousandth of the range"),
        (["--epsilon", "8"], "larger than any difference within"),
        (["--epsilon", "0.001"], None),
        (["--bounds", "0", "255", "--epsilon", "8"], None),
    ],
)
def test_an_epsilon_in_other_units_than_the_images_causes_a_warning(options, remark, path, capsys):
    argv = ["evaluate", path, *DATA, "--num-examples", "8", "--attack", "fgsm", "--no-checks"]
    assert main([*argv, *options]) == 0
    printed = capsys.readouterr().err
    if remark is None:
        assert printed == ""
    else:
        assert printed.startswith("keras-robust: warning: ")
        assert remark in printed
        assert printed.count("\n") == 1


def archive_without(name, source, target):
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for part in old.namelist():
            if part != name:
                new.writestr(part, old.read(part))


def archive_with(name, content, source, target):
    archive_without(name, source, target)
    with zipfile.ZipFile(target, "a") as archive:
        archive.writestr(name, content)


def flip_a_byte(source, target):
    """Copies the file with one byte of its weights changed."""
    data = bytearray(pathlib.Path(source).read_bytes())
    with zipfile.ZipFile(source) as archive:
        start = archive.getinfo("model.weights.h5").header_offset
    data[start + 2000] ^= 255
    target.write_bytes(bytes(data))


DAMAGES = {
    "it is incomplete": lambda source, target: target.write_bytes(
        pathlib.Path(source).read_bytes()[:-100]
    ),
    "it is empty": lambda source, target: target.write_bytes(b""),
    "it is a folder": lambda source, target: target.mkdir(),
    "it is not a zip archive": lambda source, target: target.write_text("<html>404</html>"),
    "it is an HDF5 file under another name": lambda source, target: target.write_bytes(
        zipfile.ZipFile(source).read("model.weights.h5")
    ),
    "it is a Git LFS pointer": lambda source, target: target.write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
    ),
    "it holds no config.json": lambda source, target: archive_without(
        "config.json", source, target
    ),
    "its config.json is damaged": lambda source, target: archive_with(
        "config.json", "{", source, target
    ),
    "its model.weights.h5 is damaged": flip_a_byte,
    "model.weights.h5": lambda source, target: archive_without(
        "model.weights.h5", source, target
    ),
    "truncated": lambda source, target: archive_with(
        "model.weights.h5", zipfile.ZipFile(source).read("model.weights.h5")[:-500], source, target
    ),
}  # fmt: skip


@pytest.mark.parametrize("message", DAMAGES)
def test_the_error_for_a_damaged_file_names_the_damage(message, path, tmp_path, capsys):
    damaged = tmp_path / "damaged.keras"
    DAMAGES[message](path, damaged)
    printed = error_of(["evaluate", str(damaged), *DATA, *FGSM], capsys)
    assert printed.startswith(f"keras-robust: error: {str(damaged)!r} cannot be loaded: ")
    assert message in printed
    assert "not found" not in printed.lower()
    assert printed.count("\n") == 1


def test_the_error_for_images_of_another_shape_has_both_shapes(tmp_path, capsys):
    for shape in ((32, 32, 3), (1, 28, 28), (784,)):
        model = keras.Sequential(
            [keras.Input(shape), keras.layers.Flatten(), keras.layers.Dense(10)]
        )
        model.save(tmp_path / "other.keras")
        argv = ["evaluate", str(tmp_path / "other.keras"), *DATA, *FGSM, "--num-examples", "8"]
        printed = error_of(argv, capsys)
        assert "(28, 28, 1)" in printed
        assert str(shape) in printed


def test_a_model_without_channels_takes_grey_images(classifier, tmp_path, capsys):
    layers = [keras.Input((28, 28)), keras.layers.Flatten(), classifier.layers[-1]]
    keras.Sequential(layers).save(tmp_path / "flat.keras")
    argv = ["evaluate", str(tmp_path / "flat.keras"), *DATA, *FGSM, "--num-examples", "50"]
    assert main([*argv, "--no-checks", "--output", str(tmp_path)]) == 0
    assert rows_in(tmp_path)[0]["accuracy"] > 0.6


@pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="on JAX `kr.datasets.load` refuses them"
)
def test_images_of_different_sizes_are_an_error(path, monkeypatch, capsys):
    tf = pytest.importorskip("tensorflow")
    images = (np.zeros((n, 28, 1), "float32") for n in (28, 27))
    signature = (tf.TensorSpec((None, 28, 1)), tf.TensorSpec((), "int64"))
    data = tf.data.Dataset.from_generator(
        lambda: ((image, 0) for image in images), output_signature=signature
    )
    monkeypatch.setattr("keras_robust.cli.data.load", lambda *arguments: data)
    printed = error_of(["evaluate", path, "--dataset", "cats_vs_dogs", *FGSM], capsys)
    assert (
        "--dataset cats_vs_dogs: A data set passed as `x` must hold images of one size" in printed
    )
    assert "(27, 28, 1), (28, 28, 1)" in printed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--pictures"], "--pictures needs an --output"),
        (["--attack", "carliniwagnerl2", "--norm", "linf"], "carliniwagnerl2 takes no --norm"),
        (["--seed", "-1"], "--seed: expected an integer of at least 0, not '-1'"),
        (["--seed", "1.5"], "--seed: expected an integer of at least 0, not '1.5'"),
    ],
)
def test_bad_options_are_an_error_before_any_work(options, message, capsys):
    assert message in error_of(["evaluate", "missing.keras", *DATA, *FGSM, *options], capsys)


def test_version(capsys):
    with pytest.raises(SystemExit) as end:
        main(["--version"])
    assert end.value.code == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"keras-robust {kr.__version__}, keras {keras.__version__}, ")
    assert keras.backend.backend() in shown


def run(command, **variables):
    environment = {name: v for name, v in os.environ.items() if name != "TF_CPP_MIN_LOG_LEVEL"}
    env = {**environment, "KERAS_BACKEND": keras.backend.backend(), **variables}
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=env)


def run_script(*argv, **variables):
    return run([*SCRIPT, *argv], **variables)


@pytest.mark.slow
def test_the_log_of_tensorflow_is_hidden(path):
    argv = ["evaluate", path, *DATA, "--num-examples", "8", *FGSM, "--no-checks"]
    quiet = run_script(*argv)
    assert (quiet.returncode, quiet.stderr) == (0, "")
    assert "worst case" in quiet.stdout


@pytest.mark.slow
def test_the_user_may_enable_the_log_of_tensorflow():
    pytest.importorskip("tensorflow", reason="the log is TensorFlow's")
    refused = run_script("--unknown", TF_CPP_MIN_LOG_LEVEL="0")
    assert refused.returncode == 2
    assert "oneDNN" in refused.stderr
    # Importing the package in Python does not change the log.
    session = run([sys.executable, "-c", "import keras_robust, tensorflow"])
    assert (session.returncode, session.stdout) == (0, "")
    assert "oneDNN" in session.stderr


@pytest.mark.slow
@pytest.mark.skipif(keras.backend.backend() != "jax", reason="TensorFlow has no compilation cache")
def test_jax_compilations_are_cached_for_the_next_call(path, tmp_path):
    argv = ["evaluate", path, *DATA, "--num-examples", "8", *FGSM, "--no-checks"]
    # By default, JAX only caches compilations of at least a second.
    settings = {
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }

    def cached():
        return {file.name for file in tmp_path.glob("cache/keras_robust/jax/*/*-cache")}

    first = run_script(*argv, **settings)
    assert first.returncode == 0, first.stderr
    compiled = cached()
    assert any(name.startswith("jit_stateless") for name in compiled)
    second = run_script(*argv, **settings)
    assert cached() == compiled
    assert second.stdout.split("\n\n")[1:] == first.stdout.split("\n\n")[1:] != []
    elsewhere = str(tmp_path / "elsewhere")
    run_script(*argv, **settings, JAX_COMPILATION_CACHE_DIR=elsewhere)
    assert cached() == compiled
    assert list(pathlib.Path(elsewhere).iterdir())
