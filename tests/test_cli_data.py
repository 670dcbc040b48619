"""The command takes files of arrays and folders of images."""

import json

import keras
import numpy as np
import pytest

import keras_robust as kr
from keras_robust.cli import main
from keras_robust.cli.data import load_data, load_mask
from keras_robust.cli.options import parser
from keras_robust.model.images import LazyImages

pytestmark = pytest.mark.slow_on_jax

FGSM = ["--attack", "fgsm", "--epsilon", "0.05"]
NAMES = ["cat", "dog", "elk"]


def nearest_mean(x, y, scale=1.0):
    """Returns the weights of a nearest class mean classifier of images from 0 to `scale`."""
    x = x.reshape(len(x), -1).astype("float64")
    means = np.stack([x[y == c].mean(axis=0) for c in range(y.max() + 1)])
    return means.T / scale, -(means**2).sum(axis=1) / 2


def save_model(path, weights, shape):
    model = keras.Sequential(
        [keras.Input(shape), keras.layers.Flatten(), keras.layers.Dense(len(weights[1]))]
    )
    model.set_weights(weights)
    model.save(path)
    return model


@pytest.fixture(scope="module")
def stored(embedded_data):
    """Returns 60 embedded test images as stored, from 0 to 255, and their labels."""
    x, y = (values[:60] for values in embedded_data[1])
    return np.round(255 * x.astype("float64")).astype("uint8"), y


@pytest.fixture
def stored_command(stored, embedded_data, tmp_path):
    """Saves these images and a model. Returns the command for them."""
    path, data = str(tmp_path / "model.keras"), str(tmp_path / "data.npz")
    save_model(path, nearest_mean(*embedded_data[0]), (28, 28, 1))
    np.savez(data, x=stored[0], y=stored[1])
    return ["evaluate", path, "--data", data, *FGSM]


def loaded(path, *options, model=None):
    argv = ["evaluate", "m.keras", "--data", str(path), *FGSM, *options]
    return load_data(parser().parse_args(argv), model)


def error_of(capsys, argv):
    """Runs a command that fails, and returns the single line of its error."""
    assert main(argv) == 2
    said = capsys.readouterr().err
    assert said.startswith("keras-robust: error: ")
    assert said.count("\n") == 1
    return said


def rows_in(folder):
    return json.loads((folder / "report.json").read_text())["rows"]


@pytest.mark.parametrize("scale", [1, 255])
def test_a_file_gives_the_same_result_as_a_data_set(stored, embedded_data, tmp_path, scale, capsys):
    path = str(tmp_path / "model.keras")
    save_model(path, nearest_mean(*embedded_data[0], scale), (28, 28, 1))
    np.savez(tmp_path / "data.npz", x=stored[0], y=stored[1])
    argv = ["evaluate", path, "--bounds", "0", str(scale), "--epsilon", str(0.05 * scale)]
    argv += ["--attack", "fgsm", "--no-checks", "--num-examples", "50"]
    own, named = tmp_path / "own", tmp_path / "named"
    assert main([*argv, "--data", str(tmp_path / "data.npz"), "--output", str(own)]) == 0
    assert main([*argv, "--dataset", "fashion_mnist_subset", "--output", str(named)]) == 0
    assert rows_in(own) == rows_in(named)
    clean, attacked, _ = rows_in(own)
    assert 0 < attacked["accuracy"] < clean["accuracy"] < 1
    said = f"{tmp_path / 'data.npz'}, the first 50 examples, scaled to 0 to {scale}"
    assert json.loads((own / "report.json").read_text())["notes"]["data"] == said
    assert f"Data: {said}." in capsys.readouterr().out


@pytest.mark.parametrize("num_examples", [1, 20, 28, 60])
@pytest.mark.parametrize("count", [None, 60], ids=["for all images", "for each"])
def test_each_example_gets_its_row_of_the_mask(num_examples, count, tmp_path):
    rng = np.random.default_rng()
    mask = rng.integers(0, 2, (28, 28, 1) if count is None else (count, 28, 28, 1))
    np.save(tmp_path / "mask.npy", mask)
    argv = ["evaluate", "m.keras", "--data", "d.npz", *FGSM, "--mask", str(tmp_path / "mask.npy")]
    found = load_mask(parser().parse_args(argv), (num_examples, 28, 28, 1))
    for number in range(num_examples):
        np.testing.assert_array_equal(found[number], mask if count is None else mask[number])


@pytest.mark.parametrize("kind", ["npy", "npz", "each"])
def test_attacks_only_change_masked_values(stored, stored_command, tmp_path, kind, capsys):
    mask = np.zeros((28, 28, 1), "uint8")
    mask[6:22, 6:22] = 1
    file = tmp_path / ("mask.npz" if kind == "npz" else "mask.npy")
    if kind == "npz":
        np.savez(file, only=mask)
    else:
        np.save(file, np.stack([mask] * 60) if kind == "each" else mask)
    argv = [*stored_command, "--no-checks", "--num-examples", "50"]
    argv += ["--mask", str(file), "--output", str(tmp_path / "report")]
    assert main(argv) == 0
    model = keras.saving.load_model(argv[1])
    x, y = stored[0][:50].astype("float32") / 255, stored[1][:50]
    attack, share = kr.attacks.FGSM(0.05), 16 * 16 / 28**2
    expected = {
        name: kr.evaluation.robust_accuracy(model, x, y, attack=attack, mask=m)
        for name, m in (("masked", mask), ("whole", None))
    }
    assert rows_in(tmp_path / "report")[1]["accuracy"] == expected["masked"] > expected["whole"]
    assert f"no more than {share:.2%} of an image's values" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.full((28, 28, 1), 2), "must hold 0"),
        (np.ones((28, 27, 1)), "must have a shape that broadcasts"),
        ({"a": np.ones(1), "b": np.ones(1)}, "must hold one array. Received: a, b"),
        (np.array([None]), "allow_pickle"),
        (None, "No such file"),
    ],
    ids=["values", "shape", "arrays", "objects", "no file"],
)
def test_bad_masks(stored_command, tmp_path, mask, message, capsys):
    file = tmp_path / "mask.npy"
    if isinstance(mask, dict):
        file = tmp_path / "mask.npz"
        np.savez(file, **mask)
    elif mask is not None:
        np.save(file, mask)
    said = error_of(capsys, [*stored_command, "--mask", str(file)])
    assert f"--mask {file}" in said
    assert message in said


@pytest.mark.parametrize(
    ("dtype", "divisor"), [("uint8", 1), ("int64", 1), ("float32", 255), ("float64", 255)]
)
def test_images_in_a_file_are_scaled_to_the_bounds(stored, tmp_path, dtype, divisor):
    x, y = stored
    x = x.astype(dtype) / divisor if divisor > 1 else x.astype(dtype)
    np.savez_compressed(tmp_path / "data.npz", x=x.astype(dtype), y=np.eye(10)[y], z=0)
    data = loaded(tmp_path / "data.npz", "--bounds", "-1", "1")
    assert data.x.dtype == np.float32
    np.testing.assert_allclose(data.x, stored[0] / 127.5 - 1, atol=1e-6)
    assert data.x.min() == -1
    assert data.x.max() <= 1
    np.testing.assert_array_equal(data.y.argmax(axis=1), y)
    assert data.description.endswith("the first 60 examples, scaled to -1 to 1")


def test_images_in_the_bounds_are_not_scaled(stored, tmp_path):
    x = 2 * stored[0].astype("float32") / 255 - 1
    np.savez(tmp_path / "data.npz", x=x, y=stored[1])
    data = loaded(tmp_path / "data.npz", "--bounds", "-1", "1", "--num-examples", "50")
    np.testing.assert_array_equal(data.x, x[:50])
    assert data.description.endswith("the first 50 examples, already from -1 to 1")
    with pytest.raises(ValueError, match=r"Received: float32 from -1\.0 to 1\.0, --bounds 0 1"):
        loaded(tmp_path / "data.npz")


X, Y = np.zeros((3, 4, 4, 1), "uint8"), np.arange(3)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": X, "y": Y}, "must hold the arrays x and y. Received: images, y"),
        ({}, "must hold the arrays x and y. Received: none"),
        ({"x": X[:2], "y": Y}, "Received: x.shape=(2, 4, 4, 1), y.shape=(3,)"),
        ({"x": X[:0], "y": Y[:0]}, "at least one example"),
        ({"x": X[:, 0, 0, 0], "y": Y}, "Received: x.shape=(3,)"),
        ({"x": X, "y": np.zeros((3, 4, 4))}, "y.shape=(3, 4, 4)"),
        ({"x": X, "y": np.array(3)}, "y.shape=()"),
        ({"x": X + np.nan, "y": Y}, "Received: float64 from nan to nan"),
        ({"x": X - np.inf, "y": Y}, "from -inf to -inf"),
        ({"x": X + 1.5, "y": Y}, "from 1.5 to 1.5, --bounds 0 1"),
        ({"x": X.astype("int64") + 256, "y": Y}, "integers from 0 to 255"),
        ({"x": X.astype("int8") - 1, "y": Y}, "integers from 0 to 255"),
        ({"x": X.astype(str), "y": Y}, "x must hold numbers"),
        ({"x": X == 0, "y": Y}, "x must hold numbers. Received: x.dtype=bool"),
        ({"x": X, "y": Y + 0.5}, "integer labels"),
        ({"x": X, "y": Y + 1}, "from 0 to 2"),
        ({"x": X.astype(object), "y": Y}, "allow_pickle=False"),
    ],
    ids=str,
)
def test_files_with_bad_arrays(arrays, message, tmp_path, capsys):
    np.savez(tmp_path / "data.npz", **arrays)
    save_model(tmp_path / "m.keras", (np.zeros((16, 3)), np.zeros(3)), (4, 4, 1))
    argv = ["evaluate", str(tmp_path / "m.keras"), "--data", str(tmp_path / "data.npz")]
    said = error_of(capsys, [*argv, "--attack", "fgsm", "--epsilon", "0.1"])
    assert message in said


def test_files_of_another_format_are_an_error(tmp_path):
    path = tmp_path / "data.npz"
    with pytest.raises(ValueError, match=r"^--data .*data\.npz: there is no such file or folder"):
        loaded(path)
    np.savez(path, x=X, y=Y)
    complete = path.read_bytes()
    contents = [b"", b"text", complete[:-50]]
    np.save(tmp_path / "x.npy", X)
    contents.append((tmp_path / "x.npy").read_bytes())
    for content in contents:
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"^--data .*data\.npz: it is not a complete \.npz"):
            loaded(path)
    damaged = bytearray(complete)
    damaged[complete.index(b"NUMPY") + 130] ^= 255
    path.write_bytes(damaged)
    with pytest.raises(ValueError, match=r"^--data .*data\.npz: .*CRC"):
        loaded(path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--data", "a.npz", "--dataset", "mnist"], "not allowed with argument"),
        ([], "one of the arguments --dataset --data is required"),
        (["--data", "a.npz", "--split", "train"], "--split is for a --dataset, not for --data"),
        (["--data", "a.npz", "--data-dir", "b"], "--data-dir is for a --dataset, not for --data"),
    ],
)
def test_options_of_data_exclude_each_other(options, message, capsys):
    assert message in error_of(capsys, ["evaluate", "m.keras", *FGSM, *options])


def needs_tensorflow():
    pytest.importorskip("tensorflow", reason="it reads folders of images")


def write(folder, images, suffix="png"):
    """Writes a file for each image of a mapping from classes to arrays."""
    for name, arrays in images.items():
        (folder / name).mkdir(parents=True)
        for number, image in enumerate(arrays):
            path = folder / name / f"{number:02}.{suffix}"
            keras.utils.save_img(path, image, scale=False, data_format="channels_last")


@pytest.fixture(scope="module")
def noisy():
    """Returns noisy grey images of three classes, from 0 to 255, by class."""
    rng = np.random.default_rng(0)
    means = rng.uniform(90, 160, (3, 8, 8, 1))
    noise = rng.normal(0, 60, (3, 15, 8, 8, 1))
    images = np.clip(means[:, None] + noise, 0, 255).round().astype("uint8")
    return dict(zip(NAMES, images, strict=True))


@pytest.fixture
def folder(noisy, tmp_path):
    """Writes these images to files, more than a batch, in reverse order of the names."""
    needs_tensorflow()
    write(tmp_path / "images", {name: noisy[name] for name in reversed(NAMES)})
    return tmp_path / "images"


@pytest.fixture
def model(noisy, tmp_path):
    """Returns a classifier of these images, scaled from 0 to 1, and its file."""
    x, y = as_arrays(noisy)
    path = tmp_path / "model.keras"
    return save_model(path, nearest_mean(x, y), (8, 8, 1)), str(path)


def as_arrays(images):
    x = np.concatenate(list(images.values())).astype("float32") / np.float32(255)
    return x, np.repeat(np.arange(len(images)), [len(arrays) for arrays in images.values()])


def test_a_folder_gives_the_same_result_as_its_images(noisy, folder, model, tmp_path, capsys):
    x, y = as_arrays(noisy)
    argv = ["evaluate", model[1], "--data", str(folder), *FGSM, "--batch-size", "7"]
    argv += ["--no-checks", "--output", str(tmp_path / "a")]
    assert main([*argv, "--per-class"]) == 0
    shown = capsys.readouterr().out
    expected = kr.evaluate(
        model[0], x, y, kr.attacks.FGSM(0.05), batch_size=7, class_names=NAMES, checks=False,
        verbose=0,
    )  # fmt: skip
    assert 0 < expected.accuracy("worst case") < expected.accuracy("clean")
    found = kr.evaluation.Report.load(tmp_path / "a")
    assert found.to_dict()["rows"] == expected.to_dict()["rows"]
    assert found.per_class == expected.per_class
    correct = expected.row("worst case").correct
    accuracies = [correct[c == y].mean() for c in range(3)]
    assert len(set(accuracies)) > 1
    lines = [line.split() for line in shown.splitlines()]
    for name, accuracy in zip(NAMES, accuracies, strict=True):
        (cells,) = (line for line in lines if line[:2] == [name, "15"])
        assert cells[3] == f"{accuracy:.1%}"
    assert f"Worst class: {NAMES[int(np.argmin(accuracies))]}, with {min(accuracies):.1%}" in shown
    assert "the first 45 examples, as 8 x 8 pixels, scaled to 0 to 1" in found.notes["data"]

    # Resumed with the same images and without the table of classes, and not with other images.
    assert main([*argv, "--resume"]) == 0
    shown = capsys.readouterr().out
    assert "Worst class: " in shown
    assert not any(line.split()[:2] == ["cat", "15"] for line in shown.splitlines())
    keras.utils.save_img(folder / "dog" / "03.png", 255 - noisy["dog"][3], scale=False)
    assert "other images" in error_of(capsys, [*argv, "--resume"])


@pytest.mark.parametrize(
    ("channels", "mode", "suffix"),
    [(1, "grayscale", "png"), (3, "rgb", "jpg"), (3, "rgb", "png"), (4, "rgba", "png")],
)
def test_images_agree_with_keras(channels, mode, suffix, tmp_path):
    needs_tensorflow()
    rng = np.random.default_rng(1)
    depth = 4 if channels == 4 else 3
    images = {name: rng.integers(0, 256, (2, 9, 12, depth)) for name in ("b", "a", "B", "10", "9")}
    write(tmp_path, images, suffix)
    (tmp_path / ".hidden").mkdir()
    (tmp_path / "empty").mkdir()
    (tmp_path / "a" / "notes.txt").write_text("mine")
    model = keras.Sequential(
        [keras.Input((6, 10, channels)), keras.layers.Flatten(), keras.layers.Dense(6)]
    )
    expected = keras.utils.image_dataset_from_directory(
        tmp_path, shuffle=False, color_mode=mode, image_size=(6, 10), batch_size=None, verbose=False
    )
    pairs = list(expected.as_numpy_iterator())
    for bounds in ((0, 1), (-1, 1), (0, 255)):
        data = loaded(tmp_path, "--bounds", *map(str, bounds), model=model)
        assert isinstance(data.x, LazyImages)  # Reads one batch at a time.
        assert data.class_names == expected.class_names == ["10", "9", "B", "a", "b", "empty"]
        np.testing.assert_array_equal(data.y, [label for _, label in pairs])
        low, high = bounds
        scaled = low + (high - low) * np.stack([image for image, _ in pairs]) / 255
        np.testing.assert_allclose(data.x[:], scaled, atol=1e-6 * (high - low))
        assert low <= data.x.min() < data.x.max() <= high


def test_models_of_any_size_and_wrapped_ones(folder, noisy):
    layers = [keras.Input((None, None, 1)), keras.layers.GlobalAveragePooling2D()]
    free = keras.Sequential([*layers, keras.layers.Dense(3)])
    assert loaded(folder, model=free).x.shape == (45, 256, 256, 1)
    flat = keras.Sequential([keras.Input((8, 8)), keras.layers.Flatten(), keras.layers.Dense(3)])
    x, y = as_arrays(noisy)
    for classifier in (flat, kr.RobustModel(flat)):
        data = loaded(folder, model=classifier)
        np.testing.assert_array_equal(data.x[:], x)
        np.testing.assert_array_equal(data.y, y)


@pytest.mark.filterwarnings("default::UserWarning")
def test_first_examples_of_few_classes_cause_a_warning(folder, noisy, model, tmp_path, capsys):
    x, y = as_arrays(noisy)
    np.savez(tmp_path / "sorted.npz", x=x, y=y)
    for path in (folder, tmp_path / "sorted.npz"):
        argv = ["evaluate", model[1], "--data", str(path), *FGSM, "--no-checks"]
        assert main([*argv, "--num-examples", "20", "--per-class"]) == 0
        said = capsys.readouterr()
        assert f"--num-examples 20 takes the first examples of --data {path}, " in said.err
        assert "which cover only 2 of 3 classes" in said.err
        assert "no examples" in said.out
        assert "Classes without examples: 1." in said.out
        assert main([*argv, "--num-examples", "31"]) == 0
        assert capsys.readouterr().err == ""


def test_bad_folders(folder, model, tmp_path, capsys):
    def said(path, model=model[0]):
        with pytest.raises(ValueError, match=f"^--data {path}: ") as error:
            loaded(path, model=model)
        return str(error.value)

    assert "a folder of images for each class, but it holds no folders" in said(folder / "cat")
    (tmp_path / "empty").mkdir()
    for name in NAMES:
        (tmp_path / "empty" / name).mkdir()
    assert "No images found" in said(tmp_path / "empty")
    (folder / "fox").mkdir()
    assert "each of the model's 3 classes" in said(folder)
    assert "Received: 4 folders" in said(folder)
    (folder / "fox").rmdir()
    wide = keras.Sequential([keras.Input((64,)), keras.layers.Dense(3)])
    assert "this one takes (64,)" in said(folder, wide)
    layers = [keras.Input((8, 8, 2)), keras.layers.Flatten(), keras.layers.Dense(3)]
    assert "1, 3 or 4 channels, not 2" in said(folder, keras.Sequential(layers))
    (folder / "dog" / "07.png").write_bytes(b"no image")
    assert f"'{folder / 'dog' / '07.png'}' is not a complete image" in said(folder)
    argv = ["evaluate", model[1], "--data", str(folder), *FGSM]
    assert "07.png" in error_of(capsys, argv)
