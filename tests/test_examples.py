"""The examples run, and print and write the documented results."""

import importlib
import json
import os
import pathlib
import runpy
import signal
import subprocess
import sys

import keras
import numpy as np
import pytest

import keras_robust as kr

pytestmark = pytest.mark.slow_on_jax

EXAMPLES = pathlib.Path(__file__).parent.parent / "examples"
sys.path.insert(0, str(EXAMPLES))


def run(name, monkeypatch, *arguments):
    module = importlib.import_module(name)
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, arguments)])
    module.main()


@pytest.mark.slow
def test_quickstart_writes_the_documented_files(monkeypatch, tmp_path, capsys):
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
        for file in ("accuracy.png", "report.html", "report.json", "report.npz", "samples.png")
    }


def test_certify_prints_both_results(monkeypatch, tmp_path, capsys):
    run("certify", monkeypatch, "--output", tmp_path, "--stddevs", 0.5, "--epochs", 1,
        "--num-examples", 4, "--num-samples", 200)  # fmt: skip
    certificate = kr.evaluation.Certificate.load(tmp_path / "stddev_0.5")
    assert len(certificate.labels) == 4
    assert (certificate.stddev, certificate.num_samples) == (0.5, 200)
    assert (tmp_path / "stddev_0.5" / "curves_L2_radius.png").exists()
    report = kr.evaluation.Report.load(tmp_path / "stddev_0.5")
    assert report.accuracy("certified") == certificate.certified_accuracy(1.25)
    last = capsys.readouterr().out.splitlines()[-1]
    expected = [certificate.certified_accuracy(r) for r in (0, 0.25, 0.5, 0.75, 1, 1.25)]
    assert last.split() == ["certified", *(f"{share:.1%}" for share in expected)]


@pytest.mark.slow
def test_quickstart_trains_a_robust_model(monkeypatch, tmp_path):
    if keras.backend.backend() != "tensorflow":
        pytest.skip("slow; the functions that the examples call are tested on both backends")
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


TUNE = ("--epochs", 1, "--train-examples", 64, "--num-examples", 16, "--batch-size", 32)


@pytest.mark.slow
def test_tuning_writes_the_documented_files(monkeypatch, tmp_path, capsys):
    pytest.importorskip("keras_tuner")
    run("tune", monkeypatch, "--defence", "fisher", "--trials", 2, "--output", tmp_path, *TUNE)
    printed = capsys.readouterr().out
    folder = tmp_path / "fisher"
    results = json.loads((folder / "trials.json").read_text())
    assert results["arguments"]["defence"] == "fisher"
    weights = [trial["weight"] for trial in results["trials"]]
    assert len(weights) == 2
    assert 1e-4 <= weights[0] < weights[1] <= 0.3
    for trial in results["trials"]:
        assert 0 <= trial["val_robust_accuracy"] <= trial["val_accuracy"] <= 1
        assert f"{trial['weight']:.4g}" in printed
    best = max(results["trials"], key=lambda trial: trial["val_robust_accuracy"])
    assert f"The best weight is {best['weight']:.4g}." in printed
    assert (folder / "tuning.png").stat().st_size > 1000
    with pytest.raises(SystemExit, match=r"trials of other settings \(epsilon"):
        run("tune", monkeypatch, "--defence", "fisher", "--epsilon", 0.2, "--output", tmp_path,
            *TUNE)  # fmt: skip


@pytest.mark.slow
def test_every_tunable_defence_trains(small_data):
    pytest.importorskip("keras_tuner")
    tune = importlib.import_module("tune")
    # The template of the WNLL head needs 500 examples.
    x, y = np.tile(small_data[0], (8, 1, 1, 1)), np.tile(np.arange(64) % 10, 8)
    attack = kr.attacks.PGD(0.1, num_steps=1)
    assert set(tune.DEFENCES) >= {"fisher", "trades", "mart", "stability", "angular", "parseval"}
    for defence in tune.DEFENCES.values():
        parts = defence.build(defence.low, attack)
        loss = parts.pop("loss", tune.CROSS_ENTROPY)
        model = kr.RobustModel(tune.make_classifier(x.shape[1:], 10, **parts))
        model.compile("sgd", loss)
        assert model.fit(x, y, batch_size=64, verbose=0).history["loss"][0] > 0


KILLED = """
import os, signal, sys
import keras_robust as kr
epoch_end, epochs = kr.callbacks.RobustAccuracy.on_epoch_end, []

def kill_in_the_second_trial(self, *arguments):
    epochs.append(epoch_end(self, *arguments))
    if len(epochs) == 2:
        os.kill(os.getpid(), signal.SIGKILL)

kr.callbacks.RobustAccuracy.on_epoch_end = kill_in_the_second_trial
sys.path.insert(0, sys.argv.pop(1))
import tune
tune.main()
"""


@pytest.mark.slow
def test_tuning_resumes_after_a_kill(monkeypatch, tmp_path):
    pytest.importorskip("keras_tuner")
    arguments = ("--defence", "fisher", "--trials", 3, *TUNE)
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, *map(str, (EXAMPLES, *arguments, "--output", tmp_path))],
        env={**os.environ, "KERAS_BACKEND": keras.backend.backend()},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    first = tmp_path / "fisher" / "trials" / "trial_0" / "trial.json"
    before = first.stat().st_mtime_ns, first.read_text()
    assert json.loads(before[1])["status"] == "COMPLETED"
    second = json.loads((tmp_path / "fisher/trials/trial_1/trial.json").read_text())
    assert not (tmp_path / "fisher" / "trials.json").exists()

    epochs = []
    epoch_end = kr.callbacks.RobustAccuracy.on_epoch_end
    monkeypatch.setattr(
        kr.callbacks.RobustAccuracy,
        "on_epoch_end",
        lambda self, *given: epochs.append(epoch_end(self, *given)),
    )
    run("tune", monkeypatch, *arguments, "--output", tmp_path)
    assert len(epochs) == 2  # The first trial is not repeated.
    assert (first.stat().st_mtime_ns, first.read_text()) == before
    trials = json.loads((tmp_path / "fisher" / "trials.json").read_text())["trials"]
    weights = {trial["weight"] for trial in trials}
    assert len(weights) == 3
    started = [json.loads(before[1]), second]
    assert {trial["hyperparameters"]["values"]["weight"] for trial in started} < weights


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("deep_defense", ["FGSM", "PGD-40", "Square"]),
        ("latent_disparity", ["FGSM", "PGD-40", "AutoAttack"]),
        ("tanh_classifier", ["PGD-40", "AutoAttack"]),
        ("wnll_head", ["straight_through", "linear", "exact", "soft_neighbors", "Square"]),
    ],
)
def test_each_defence_has_a_script_of_at_most_60_lines(name, rows, monkeypatch, capsys):
    path = EXAMPLES / f"{name}.py"
    assert len(path.read_text().splitlines()) <= 60
    monkeypatch.setattr(sys, "argv", [path.name, "--epochs", "1", "--num-examples", "8"])
    runpy.run_path(str(path), run_name="__main__")
    printed = capsys.readouterr().out
    for row in ("clean", *rows, "worst case"):
        assert row in printed
