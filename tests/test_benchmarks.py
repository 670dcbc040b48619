"""The GPU benchmark ends in time, and torchattacks is measured on the same network."""

import argparse
import importlib
import json
import os
import pathlib
import subprocess
import sys
import time

import keras
import numpy as np
import pytest

import keras_robust as kr
from keras_robust.model.classifier import Classifier

ROOT = pathlib.Path(__file__).parent.parent


def benchmark(name):
    """Imports a module of benchmarks/."""
    with pytest.MonkeyPatch.context() as context:
        context.syspath_prepend(ROOT / "benchmarks")
        return importlib.import_module(name)


@pytest.fixture(scope="module")
def gpu():
    return benchmark("gpu")


@pytest.fixture
def scripted(gpu, monkeypatch):
    """Replaces the parts' processes and the clock: each command takes 100 seconds."""
    now, given = [0.0], []

    def make(statuses):
        def run(command, seconds):
            given.append((command[-1], seconds))
            now[0] += min(seconds, 100)
            return statuses[len(given) - 1] if seconds >= 100 else None

        monkeypatch.setattr(gpu, "run", run)
        monkeypatch.setattr(time, "monotonic", lambda: now[0])
        return given

    return make


def test_parts_run_after_a_failure_and_until_the_time_is_up(gpu, scripted):
    given = scripted([0, 3, 0])
    names = ("good", "bad", "good again", "too long", "late", "later")
    outcomes = gpu.run_all({name: [name] for name in names}, 350)
    assert given == [("good", 350), ("bad", 250), ("good again", 150), ("too long", 50)]
    assert list(outcomes.values()) == [
        "done", "failed, exit status 3", "done", "cut short", "left out", "left out",
    ]  # fmt: skip
    assert tuple(outcomes) == names


@pytest.mark.parametrize(("statuses", "expected"), [([0, 0], 0), ([1, 0], 1)])
def test_the_last_lines_list_missing_parts(statuses, expected, gpu, scripted, monkeypatch, capsys):
    monkeypatch.setenv("PYTHONPATH", "")
    monkeypatch.setenv("KERAS_BACKEND", keras.backend.backend())
    scripted(statuses)
    assert gpu.main(["--parts", "vgg16", "losses", "search", "--minutes", "4.5"]) == expected
    printed = capsys.readouterr().out
    first = "failed, exit status 1" if expected else "done"
    assert f"vgg16      {first}\nsearch     done\nlosses     cut short\n" in printed
    missing = "vgg16 losses" if expected else "losses"
    assert printed.endswith(f"For the rest: python benchmarks/gpu.py --parts {missing}\n")


def test_parts_are_ordered_by_importance(gpu):
    commands = gpu.commands(gpu.parse_arguments(["--output", "figures"]))
    assert list(commands) == ["resnet20", "vgg16", "attacks", "wnll", "search", "losses"]
    for command in commands.values():
        assert (ROOT / command[1]).exists()
        assert command[-2:] == ["--output", str(pathlib.Path("figures").resolve())]


def test_a_part_is_killed_with_its_child_processes(gpu, tmp_path):
    assert gpu.run(["sh", "-c", "exit 3"], 60) == 3
    child = tmp_path / "child"
    assert gpu.run(["sh", "-c", f"sleep 600 & echo $! > {child}; wait"], 2) is None
    state = pathlib.Path(f"/proc/{child.read_text().strip()}/stat")
    for _ in range(100):
        # Ended, or a zombie until its new parent collects it.
        if not state.exists() or state.read_text().split()[2] == "Z":
            return
        time.sleep(0.1)
    pytest.fail("the child is still running")


@pytest.mark.slow
def test_every_part_runs(tmp_path):
    command = [sys.executable, "benchmarks/gpu.py", "--quick", "--minutes", "30", "--output"]
    environment = {**os.environ, "KERAS_BACKEND": keras.backend.backend()}
    assert subprocess.run([*command, tmp_path], cwd=ROOT, env=environment).returncode == 0
    cases = {}
    for path in tmp_path.glob("*.json"):
        cases[path.name.split("-")[0]] = json.loads(path.read_text())["cases"]
    assert set(cases) == {"training", "attacks", "wnll", "losses"}
    assert set(cases["training"]) == {"resnet20, batch size 2", "vgg16, batch size 2"}
    assert {name.split(",")[0] for name in cases["attacks"]} == {"fgsm", "square"}
    kinds = {name.replace(",", " ").split()[0] for name in cases["wnll"]}
    assert kinds == {"forward", "training", "search"}
    assert set(cases["losses"]) == {"Deep Defense"}


@pytest.fixture(scope="module")
def torch_python():
    """Returns a Python that can import `torchattacks`."""
    peers = benchmark("peers")
    for python in (ROOT / ".venv-torch" / "bin" / "python", sys.executable):
        if peers.why_no_torchattacks(str(python), "resnet20") is None:
            return str(python)
    pytest.skip("needs PyTorch and torchattacks: `make .venv-torch/installed`")


@pytest.mark.slow
def test_torchattacks_attacks_the_same_network(torch_python):
    models, peers = benchmark("models"), benchmark("peers")
    model = models.resnet20(shape=(28, 28, 1))
    rng = np.random.default_rng(0)
    for layer in model.layers:  # Statistics and factors as if trained, other than 0 and 1.
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.set_weights([rng.uniform(0.5, 1.5, w.shape) for w in layer.get_weights()])
    x = rng.uniform(0.2, 0.8, (8, 28, 28, 1)).astype("float32")
    y = Classifier(model).predict(x).argmax(1)  # It does not attack misclassified images.
    attacks = {
        "fgsm": kr.attacks.FGSM(0.1),
        "pgd-40": kr.attacks.PGD(0.1, step_size=0.02, num_steps=5),
        "deepfool": kr.attacks.DeepFool(),
        "apgd-dlr": kr.attacks.APGD(0.1, loss="dlr", num_steps=5),
        "square": kr.attacks.Square(0.1, num_queries=5),
    }
    args = argparse.Namespace(torch_python=torch_python, repeats=2, slow_seconds=60.0)
    found = {name: rest for name, *rest in peers.torchattacks(model, attacks, x, y, args)}
    assert list(found) == ["fgsm", "pgd-40", "apgd-dlr", "square"]  # DeepFool is not compared.
    for x_adv, seconds in found.values():
        assert abs(x_adv - x).max() < 0.1 + 1e-6
        assert len(seconds) == 3
        assert min(seconds) > 0
    # The signs agree wherever the gradient is not close to 0.
    ours = benchmark("attacks").perturb(model, attacks["fgsm"], x, y)
    assert (abs(found["fgsm"][0] - ours) < 1e-6).mean() > 0.99


@pytest.mark.slow
def test_a_network_with_other_weights_is_an_error(torch_python, monkeypatch):
    models, peers = benchmark("models"), benchmark("peers")
    model = models.resnet20(shape=(28, 28, 1))
    weights = peers.resnet20_weights(model)
    monkeypatch.setattr(peers, "resnet20_weights", lambda model: [1.01 * w for w in weights])
    args = argparse.Namespace(torch_python=torch_python, repeats=1, slow_seconds=60.0)
    x, y = np.random.default_rng(0).random((4, 28, 28, 1), "float32"), np.arange(4)
    with pytest.raises(RuntimeError, match=r"torch_attacks.py .* failed"):
        list(peers.torchattacks(model, {"fgsm": kr.attacks.FGSM(0.1)}, x, y, args))
