"""The examples run, and show what they promise."""

import importlib.util
import json
import pathlib
import sys

import keras
import pytest

EXAMPLES = pathlib.Path(__file__).parent.parent / "examples"


def run(name, monkeypatch, *arguments):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, arguments)])
    module.main()


def test_quickstart_writes_what_it_says(monkeypatch, tmp_path, capsys):
    run("quickstart", monkeypatch, "--output", tmp_path, "--train-examples", 256, "--epochs", 1,
        "--num-examples", 16)  # fmt: skip
    printed = capsys.readouterr().out
    for row in ("clean", "FGSM", "PGD-20", "PGD-100, 3 restarts", "worst case"):
        assert row in printed
    paths = [path for path in tmp_path.rglob("*") if path.is_file()]
    names = {str(path.relative_to(tmp_path)) for path in paths if path.parent.name != "progress"}
    assert names == {"curves.png", "results.json"} | {
        f"{model}/{file}"
        for model in ("softmax", "robust")
        for file in ("accuracy.png", "report.html", "report.json", "samples.png")
    }


@pytest.mark.slow
def test_quickstart_shows_a_robust_model(monkeypatch, tmp_path):
    if keras.backend.backend() != "tensorflow":
        pytest.skip("training a convolution on JAX takes too long on a CPU")
    run("quickstart", monkeypatch, "--output", tmp_path)
    results = json.loads((tmp_path / "results.json").read_text())
    worst = {name: report["rows"][-1]["accuracy"] for name, report in results["reports"].items()}
    clean = {name: report["rows"][0]["accuracy"] for name, report in results["reports"].items()}
    assert clean["softmax"] > 0.8
    assert clean["robust"] > 0.65
    assert worst["robust"] > worst["softmax"] + 0.4
    assert all(curve[-1][1] <= 0.15 for curve in results["curves"].values())


@pytest.mark.slow
def test_quickstart_takes_a_full_data_set(monkeypatch, tmp_path, full_data_dir):
    run("quickstart", monkeypatch, "--dataset", "mnist", "--data-dir", full_data_dir, "--epsilon",
        0.3, "--output", tmp_path, "--train-examples", 256, "--epochs", 1, "--num-examples", 16,
    )  # fmt: skip
    assert json.loads((tmp_path / "results.json").read_text())["arguments"]["dataset"] == "mnist"
