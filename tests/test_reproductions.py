"""Tables of papers are measured once, recorded with their settings, and can be resumed."""

import json
import os
import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest

import keras_robust as kr
from keras_robust.model.arrays import as_arrays

FOLDER = pathlib.Path(__file__).parent.parent / "examples" / "reproductions"
MODULES = sorted(path.stem for path in FOLDER.glob("[a-z]*.py"))


@pytest.fixture
def modules(monkeypatch):
    """Imports the modules of the reproductions by their short names during a test."""
    for name in MODULES:
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(FOLDER)
    found = {name: __import__(name) for name in MODULES}
    yield found
    for name in MODULES:
        del sys.modules[name]


def command(*arguments, timeout=600):
    return subprocess.run(
        [sys.executable, FOLDER, *map(str, arguments)],
        env={**os.environ, "KERAS_BACKEND": keras.backend.backend()},
        capture_output=True,
        text=True,
        timeout=timeout,
    )


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory):
    """Returns a folder of small data sets with the names of the real ones."""
    folder = tmp_path_factory.mktemp("tiny")
    splits = [
        as_arrays(kr.datasets.load("fashion_mnist_subset", split).take(count))
        for split, count in (("train", 1000), ("test", 40))
    ]
    for name, channels, size in (
        ("mnist", 1, 28),
        ("fashion_mnist", 1, 28),
        ("cifar10_jpeg", 3, 32),
    ):
        arrays = {}
        for part, (x, y) in zip(("train", "test"), splits, strict=True):
            images = np.pad(x, [(0, 0), *[((size - 28) // 2,) * 2] * 2, (0, 0)]).repeat(
                channels, -1
            )
            arrays[f"{part}_images"] = np.round(255 * images).astype("uint8")
            arrays[f"{part}_labels"] = y.astype("uint8")
        np.savez(folder / f"{name}.npz", **arrays)
    return folder


def test_list_has_the_tables_of_all_papers():
    listed = command("list")
    assert listed.returncode == 0, listed.stderr
    expected = {
        "Adversarial Defense via Data Dependent": ["Table 1", "Table 5", "Figure 2", "Figure 6"],
        "Graph Interpolating Activation": ["Table 2", "Table 11", "Figure 4", "Figure 10"],
        "Deep Defense": ["Table 1", "Figure 2", "Figure 3", "Figure 4"],
        "Weight Penalization": ["Table 2", "Table 5", "Figure 3", "Figure 7"],
        "Latent Disparity": ["Table I", "Figures 2 to 6, CIFAR-10"],
    }
    for title, names in expected.items():
        assert title in " ".join(listed.stdout.split())
        for name in names:
            assert name in listed.stdout


def test_the_error_for_an_unknown_table_lists_the_known_ones():
    refused = command("run", "deep_defense", "Table 9")
    assert refused.returncode == 2
    assert "must be one of 'Table 1'" in refused.stderr
    assert "Received: 'Table 9'" in refused.stderr


def test_a_run_measures_once_and_records_its_settings(modules, tmp_path):
    tables = modules["tables"]
    calls = []

    def compute(run):
        for row in ("a", "b"):
            run.measure(
                row, lambda row=row: calls.append(row) or {"clean": 0.5}, images=3, epochs=2
            )

    paper = tables.Paper("some_paper", "Somebody, Something")
    paper.table("Table 7", "what it shows", small=1, paper=2)(compute)

    def run(deadline=None):
        return tables.Run(
            paper.tables["Table 7"],
            "small",
            None,
            tmp_path / "records",
            tmp_path / "cache",
            deadline,
        )

    with pytest.raises(tables.TimeIsUpError):
        run(deadline=0.0)()
    assert not calls
    assert not run().is_complete
    run()()
    run(deadline=0.0)()  # No row is left to measure.
    assert calls == ["a", "b"]
    assert run().is_complete
    found = json.loads((tmp_path / "records" / "some_paper.json").read_text())
    record = found["Table 7, small, a, seed 0"]
    assert record["values"] == {"clean": 0.5}
    assert record["command"].endswith(
        "python examples/reproductions run some_paper 'Table 7' --scale small"
    )
    settings = {
        "table": "Table 7",
        "row": "a",
        "scale": "small",
        "seed": 0,
        "images": 3,
        "epochs": 2,
    }
    assert settings.items() <= record.items()
    assert {"machine", "versions", "seconds"} <= record.keys()
    assert keras.backend.backend() in record["versions"]


def test_a_record_has_each_list_of_numbers_in_one_line(modules, tmp_path):
    records = modules["records"].Records(tmp_path / "records.json")
    record = {"values": {"x": [1.0, 2.5], "rows": ["a", "b [c] d"]}, "command": "run 'Table 4'"}
    records.add("name", record)
    text = (tmp_path / "records.json").read_text()
    assert json.loads(text) == {"name": record}
    assert '"x": [ 1.0, 2.5 ]' in text


@pytest.fixture
def empty_run(modules, tmp_path):
    """Returns the small run of a table without rows."""
    tables = modules["tables"]
    paper = tables.Paper("some_paper", "Somebody, Something")
    paper.table("Table 7", "what it shows", small=1, paper=2)(lambda run: None)
    return tables.Run(paper.tables["Table 7"], "small", None, tmp_path, tmp_path)


def linear_model():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


def test_a_network_is_trained_once_and_can_be_resumed(empty_run):
    x, y = np.random.rand(32, 4).astype("float32"), np.arange(32) % 2
    epochs, stop_after = [], [2]

    def fit(model, callbacks):
        def note(epoch, logs):
            epochs.append(epoch)
            if len(epochs) == stop_after[0]:
                raise KeyboardInterrupt

        # Interrupts at the start of an epoch, after the backup of the previous one.
        watch = keras.callbacks.LambdaCallback(on_epoch_begin=note)
        model.fit(x, y, epochs=4, verbose=0, callbacks=[*callbacks, watch])

    with pytest.raises(KeyboardInterrupt):
        empty_run.network("a network", linear_model, fit)
    stop_after[0] = None
    model = empty_run.network("a network", linear_model, fit)
    assert epochs == [0, 1, 1, 2, 3]
    assert len(empty_run.training_log("a network")["loss"]) == 4
    again = empty_run.network("a network", linear_model, None)
    np.testing.assert_array_equal(again.get_weights()[0], model.get_weights()[0])


@pytest.mark.parametrize(("num_backups", "expected"), [(1, [0, 1, 2, 3]), (2, [1, 2, 3])])
def test_training_resumes_if_a_backup_was_interrupted(empty_run, num_backups, expected):
    x, y = np.random.rand(32, 4).astype("float32"), np.arange(32) % 2
    epochs, stop_before = [], [num_backups]

    def fit(model, callbacks):
        def note(epoch, logs):
            if epoch == stop_before[0]:
                raise KeyboardInterrupt
            epochs.append(epoch)

        watch = keras.callbacks.LambdaCallback(on_epoch_begin=note)
        model.fit(x, y, epochs=4, verbose=0, callbacks=[*callbacks, watch])

    with pytest.raises(KeyboardInterrupt):
        empty_run.network("a network", linear_model, fit)
    (weights,) = empty_run.cache.rglob("latest.weights.h5")
    weights.write_bytes(weights.read_bytes()[:100])
    if num_backups == 1:
        # Keras writes this file after the weights.
        (weights.parent / "training_metadata.json").unlink()
    epochs.clear()
    stop_before[0] = None
    empty_run.network("a network", linear_model, fit)
    assert epochs == expected
    assert len(empty_run.training_log("a network")["loss"]) == 4


def test_an_epoch_that_a_resumed_training_repeats_is_logged_once(empty_run):
    x, y = np.random.rand(32, 4).astype("float32"), np.arange(32) % 2
    is_interrupted = [True, False]

    def fit(model, callbacks):
        def interrupt(epoch, logs):
            if epoch == 1 and is_interrupted.pop(0):
                raise KeyboardInterrupt

        # Interrupts after the epoch is logged, before it is backed up.
        log, backup = callbacks
        watch = keras.callbacks.LambdaCallback(on_epoch_end=interrupt)
        model.fit(x, y, epochs=4, verbose=0, callbacks=[log, watch, backup])

    with pytest.raises(KeyboardInterrupt):
        empty_run.network("a network", linear_model, fit)
    empty_run.network("a network", linear_model, fit)
    assert is_interrupted == []
    assert len(empty_run.training_log("a network")["loss"]) == 4


@pytest.mark.slow
def test_data_in_the_file_agree_with_the_data_set(modules, full_data_dir, tmp_path):
    data = modules["data"]
    if keras.backend.backend() != "tensorflow":
        pytest.skip("the file is written with TensorFlow")
    for name in ("mnist", "cifar10_jpeg"):
        path = data.write(name, full_data_dir, tmp_path)
        assert path.stat().st_size < 60e6
        expected, found = data.load(name, full_data_dir), data.load(name, str(tmp_path))
        for (x, y), (x_found, y_found) in zip(expected, found, strict=True):
            np.testing.assert_array_equal(y_found, y)
            assert x_found.dtype == np.float32
            # JPEG decoders differ.
            largest_error = 0 if name == "mnist" else 8
            assert np.abs(x_found - x).max() <= (largest_error + 0.01) / 255
            assert np.abs(x_found - x).mean() < largest_error / 5 / 255 + 1e-9


# The fastest tables of each paper. The larger tables use the same functions.
CHEAP = [
    ("weight_penalization", "Figure 7"),
    ("graph_interpolation", "Table 2"),
    ("graph_interpolation", "Table 7"),
    ("wnll_defense", "Table 3"),
    ("latent_disparity", "Table I"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("paper", "table"), CHEAP)
def test_tables_are_measured_and_listed(paper, table, tiny_data, tmp_path):
    if keras.backend.backend() != "tensorflow":
        pytest.skip("slow; the functions that the tables call are tested on both backends")
    folders = ("--results", tmp_path / "results", "--cache", tmp_path / "cache")
    arguments = ("run", paper, table, "--data-dir", tiny_data, *folders)
    done = command(*arguments, timeout=1800)
    assert done.returncode == 0, done.stderr
    path = tmp_path / "results" / f"{paper}.json"
    before = path.read_text()
    for name, record in json.loads(before).items():
        if name.endswith("complete"):
            continue
        for value in record["values"].values():
            assert np.isfinite(np.asarray(value, float)).all() if value != "inf" else True
    assert command(*arguments).returncode == 0
    assert path.read_text() == before
    assert "measured" in command("list", "--results", tmp_path / "results").stdout


@pytest.fixture
def run_of(modules, tiny_data, tmp_path):
    """Returns a function that makes the small run of a table on the small data."""

    def run_of(paper, table):
        table = modules[paper].PAPER.tables[table]
        return modules["tables"].Run(table, "small", str(tiny_data), tmp_path, tmp_path / "cache")

    return run_of


@pytest.mark.slow
def test_worst_case_is_at_most_the_accuracy_under_each_attack(modules, run_of):
    paper, run = modules["weight_penalization"], run_of("weight_penalization", "Table 4")
    network = paper.Network(run, "mnist", paper.ANGULAR, epochs=30)
    _, test = run.data("mnist")
    values = paper.evaluated(run, paper.SETTINGS["mnist"], network.trained(), test)
    published = run.table.published[paper.ANGULAR]
    assert published.keys() | {"AutoAttack, fast", "APGD, margin", "Square", "worst case"} == (
        values.keys()
    )
    # C&W has another norm, and MTA other images.
    others = values.keys() - {"worst case", "C&W", "MTA-200"}
    assert values["worst case"] <= min(values[name] for name in others)


@pytest.mark.slow
def test_deep_defense_moves_the_reference(modules, run_of):
    paper, run = modules["deep_defense"], run_of("deep_defense", "Figure 4")
    options = {"c": 25.0, "layers": ["conv1"]}
    paper.measure_points(run, {"conv1, c 25": options})
    reference, ours = (record["values"] for record in run.rows)
    assert reference.keys() == ours.keys() == {"test accuracy", "rho_2"}
    assert 0 < reference["rho_2"] != ours["rho_2"] > 0
    network = paper.Network(run, "LeNet", paper.OURS, images=10_000, options=options)
    before, after = (n.trained().get_weights()[0] for n in (network.reference, network))
    assert (before != after).any()


@pytest.mark.slow
def test_the_log_of_a_wnll_network_covers_all_stages(modules, run_of):
    networks, run = modules["wnll_networks"], run_of("graph_interpolation", "Figure 4")
    wnll = networks.Natural(run, "Small-CNN", networks.WNLL, 200, dataset="mnist")
    log = wnll.log()
    assert log.keys() == {"loss", "accuracy", "val_loss", "val_accuracy"}
    assert {len(values) for values in log.values()} == {wnll.epochs + 2 * 5}
    assert wnll.log() == log
