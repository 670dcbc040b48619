"""The code in README.md and docs/ works as documented, on few images and epochs."""

import functools
import json
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys

import keras
import numpy as np
import pytest

import keras_robust as kr
from keras_robust.callbacks import robust_accuracy
from keras_robust.cli import main
from keras_robust.cli.attacks import check_attacks
from keras_robust.cli.options import parser
from keras_robust.model.arrays import as_arrays

pytestmark = pytest.mark.slow

ROOT = pathlib.Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(path, language="python"):
    found = re.findall(r"^```(\w*)\n(.*?)^```$", path.read_text(), flags=re.DOTALL | re.MULTILINE)
    return [code for name, code in found if name == language]


README, TRAIN, ATTACK, EVALUATION, LOSSES, SCALING, WNLL = (
    blocks(ROOT / name)
    for name in (
        "README.md",
        "docs/train.md",
        "docs/attack.md",
        "docs/evaluation.md",
        "docs/losses.md",
        "docs/scaling.md",
        "docs/wnll.md",
    )
)
load = kr.datasets.load
fit = keras.Model.fit


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Runs an example in a new folder, and returns its variables."""
    monkeypatch.chdir(tmp_path)

    def run(code, count=64, epochs=1, **variables):
        monkeypatch.setattr(kr.datasets, "load", lambda *args: load(*args).take(count))

        def short_fit(self, *args, **kwargs):
            kwargs["epochs"] = min(epochs, kwargs.get("epochs", 1))
            return fit(self, *args, **{**kwargs, "verbose": 0})

        monkeypatch.setattr(keras.Model, "fit", short_fit)
        exec(compile(code, "example", "exec"), variables)
        return variables

    return run


@pytest.fixture
def images():
    return as_arrays(load("fashion_mnist_subset", "test").take(100))


def accuracy(model, images):
    x, y = images
    return (model.predict(x, verbose=0).argmax(axis=1) == y).mean()


def test_every_example_has_its_test():
    counts = {path.name: len(blocks(path)) for path in PAGES if blocks(path)}
    assert counts == {
        "README.md": 2,
        "attack.md": 1,
        "evaluation.md": 4,
        "losses.md": 4,
        "scaling.md": 4,
        "supported.md": 6,
        "train.md": 4,
        "wnll.md": 3,
    }


def test_model_is_trained_and_judged(run, images, capsys, monkeypatch):
    monkeypatch.setattr(kr, "evaluate", functools.partial(kr.evaluate, checks=False))
    report = run(README[0], count=60)["report"]
    assert [row.name for row in report.rows] == ["clean", "AutoAttack(epsilon=0.1)", "worst case"]
    assert report.statement in capsys.readouterr().out
    assert pathlib.Path("report/report.html").exists()
    saved = keras.saving.load_model("classifier.keras")
    assert "keras_robust" not in saved.to_json()


def test_defence_is_tuned(run, capsys):
    """KerasTuner proposes as many weights as there are trials, and the best is printed."""
    tuner = run(README[1], count=200)["tuner"]
    trials = tuner.oracle.trials.values()
    assert len({trial.hyperparameters.get("beta") for trial in trials}) == 4
    scores = [trial.score for trial in trials]
    best = max(trials, key=lambda trial: trial.score).hyperparameters.values
    assert all(0 <= score <= 1 for score in scores)
    assert tuner.get_best_hyperparameters()[0].values == best
    assert str(best) in capsys.readouterr().out


def test_layer(run, images):
    model = run(TRAIN[0], count=2000)["model"]
    features = kr.evaluation.features(model, images[0])
    assert abs(features).max() <= 1  # Tanh features.
    assert float(sum(model.losses)) > 0  # The angular penalty.
    assert accuracy(model, images) > 0.4


def test_wnll_head(run, images):
    model = run(TRAIN[1], count=800)["model"]
    head = model.layers[-1]
    assert head.phase == "wnll"
    outputs = model.predict(images[0], verbose=0)
    np.testing.assert_allclose(np.exp(outputs).sum(axis=1), 1, atol=1e-4)
    assert accuracy(model, images) > 0.4
    # Predictions do not depend on the batch.
    separate = np.concatenate([model.predict(x[None], verbose=0) for x in images[0][:5]])
    np.testing.assert_allclose(separate, outputs[:5], rtol=1e-3, atol=1e-4)


def test_loss(run, images, capsys):
    found = run(TRAIN[2], count=500)
    report, model = found["report"], found["model"]
    assert [row.name for row in report.rows] == ["clean", "PGD-40", "worst case"]
    assert report.accuracy("worst case") == report.accuracy("PGD-40") <= report.accuracy("clean")
    assert report.statement in capsys.readouterr().out
    # The deployed model has the same predictions, and does not need this package.
    saved = keras.saving.load_model("classifier.keras")
    assert type(saved) is keras.Sequential
    assert "keras_robust" not in saved.to_json()
    np.testing.assert_allclose(
        saved.predict(images[0], verbose=0), model.predict(images[0], verbose=0), atol=1e-5
    )


def test_callback_of_the_readme_keeps_the_best_epoch_and_stops(run, monkeypatch):
    logged = iter([0.3, 0.6, 0.5, 0.4, 0.2, 0.1])
    weights = []

    def scripted(model, *arguments, **named):
        weights.append(model.get_weights())
        return next(logged)

    monkeypatch.setattr(robust_accuracy, "robust_accuracy", scripted)
    found = run(TRAIN[3], epochs=20)
    assert found["model"].history.history["val_robust_accuracy"] == [0.3, 0.6, 0.5, 0.4, 0.2]
    best = keras.saving.load_model("best.keras")
    for saved, expected in zip(best.get_weights(), weights[1], strict=True):
        np.testing.assert_array_equal(saved, expected)
    assert any((a != b).any() for a, b in zip(weights[1], weights[-1], strict=True))


def test_attacks_and_report(run, monkeypatch):
    found = run(ATTACK[0], count=40)
    result, report, x, y = (found[name] for name in ("result", "report", "x", "y"))
    # A failed attack returns the original image.
    np.testing.assert_array_equal(result.x_adv[~result.success], x[~result.success])
    assert result.success_rate == result.success.mean()
    assert (result.norms["linf"] <= 0.03 + 1e-6).all()
    page = pathlib.Path("report/report.html").read_text()
    assert "<script" not in page
    assert "http" not in page
    for text in ("PGD-40", "AutoAttack", "DeepFool", "95% interval", "Checks", report.statement):
        assert text in page
    assert "DeepFool" in report.statement  # It has no radius, so the worst case excludes it.
    # Resuming and loading give the same report.
    arguments = (found["model"], x, y, found["attacks"])
    resumed = kr.evaluate(*arguments, output="report", resume=True, checks=False, verbose=0)
    assert resumed.to_dict()["rows"] == report.to_dict()["rows"]
    assert kr.evaluation.Report.load("report").to_dict()["rows"] == report.to_dict()["rows"]
    larger = found["attacks"]["PGD-40"].replace(epsilon=0.1)
    assert (larger.epsilon, found["attacks"]["PGD-40"].epsilon) == (0.1, 0.03)


def command():
    (code,) = [code for code in blocks(ROOT / "README.md", "") if "keras-robust" in code]
    name, *argv = shlex.split(code.replace("\\\n", " "))
    assert name == "keras-robust"
    return argv


def test_the_command_of_the_readme_has_valid_options():
    options = parser().parse_args(command())
    check_attacks(options)
    assert options.num_examples == 500
    assert options.epsilon == 8 / 255


@pytest.mark.slow
def test_the_command_of_the_readme_writes_a_report_and_resumes(
    trained_model, monkeypatch, tmp_path, capsys
):
    monkeypatch.chdir(tmp_path)
    trained_model.save("classifier.keras")
    argv = [{"500": "40"}.get(part, part) for part in command()]
    assert main(argv) == 0
    first = kr.evaluation.Report.load("report")
    assert set(first.curves) == {"epsilon", "steps"}
    assert first.geometry is not None
    assert "report/report.html" in capsys.readouterr().out
    assert main([*argv, "--resume"]) == 0
    assert kr.evaluation.Report.load("report").to_dict()["rows"] == first.to_dict()["rows"]


def test_checks_print_their_results(trained_model, images, capsys):
    exec(EVALUATION[0], {"kr": kr, "model": trained_model, "x": images[0], "y": images[1]})
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("passed")]
    assert len(lines) >= 13
    assert any("clean accuracy is above chance" in line for line in lines)


def test_a_report_with_a_certificate(trained_model, images, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    certify = functools.partial(kr.evaluation.certify, num_samples=500, batch_size=600)
    monkeypatch.setattr(kr.evaluation, "certify", certify)
    monkeypatch.setattr(kr, "evaluate", functools.partial(kr.evaluate, checks=False))
    found = {"kr": kr, "model": trained_model, "x": images[0][:6], "y": images[1][:6]}
    exec(EVALUATION[2], found)
    report, certificate = found["report"], found["certificate"]
    assert report.accuracy("certified") == certificate.certified_accuracy(0.75)
    assert (tmp_path / "report" / "curves_L2_radius.png").exists()


@pytest.mark.skipif(keras.backend.backend() != "jax", reason="only for JAX")
def test_jax_caches_compilations(monkeypatch):
    import jax

    settings = {}
    monkeypatch.setattr(jax.config, "update", settings.__setitem__)
    exec(EVALUATION[3], {})
    assert settings == {"jax_compilation_cache_dir": "/path/to/a/folder"}


def test_distances_from_predicted_classes_only(run):
    found = run(EVALUATION[1])
    assert (found["distances"] > 0).all()


def test_a_sum_with_a_growing_weight(run):
    found = run(LOSSES[0], epochs=3)
    assert float(found["weight"]) == 10.0  # The weight in the third epoch.
    assert np.isfinite(found["model"].history.history["loss"]).all()


def test_a_growing_radius(run):
    found = run(LOSSES[1])
    steps = (0, 500, 1000, 2000)
    np.testing.assert_allclose(
        [float(found["epsilon"](step)) for step in steps], [0, 0.05, 0.1, 0.1], rtol=1e-6
    )
    x, y = np.full((8, 4), 0.5, "float32"), np.arange(8) % 2
    model = kr.RobustModel(keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)]))
    model.compile(keras.optimizers.SGD(0.0), found["loss"])
    plain = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    clean = float(plain(y, model.predict(x, verbose=0)))
    losses = []
    for step in (0, 500, 1000):
        model.optimizer.iterations.assign(step)
        losses.append(model.train_on_batch(x, y))
    # The radius of the attack starts at 0 and grows.
    assert clean == pytest.approx(losses[0], rel=1e-5)
    assert losses[0] < losses[1] < losses[2]


def test_precomputed_pairs(run):
    found = run(LOSSES[2], epochs=2)
    x, x_adv = (np.asarray(found[name]) for name in ("x", "x_adv"))
    assert x.shape == x_adv.shape == (64, 28, 28, 1)
    moved = (x != x_adv).any(axis=(1, 2, 3))
    assert 0 < moved.mean() <= 1


def test_defences_that_keras_has(run, images):
    found = run(LOSSES[3], count=2000)
    assert accuracy(found["noisy"], images) > 0.4
    assert accuracy(found["machine"], images) > 0.4
    assert isinstance(found["machine"].loss, keras.losses.CategoricalHinge)
    first, second = (found["noisy"].predict(images[0], verbose=0) for _ in range(2))
    np.testing.assert_array_equal(first, second)  # The noise is only active in training.


def test_training_a_wnll_classifier_and_saving_it(run, images):
    x, y = as_arrays(load("fashion_mnist_subset", "train").take(1000))
    backbone = keras.Sequential([keras.Input((28, 28, 1)), keras.layers.Flatten()])
    model = run(WNLL[0], keras=keras, kr=kr, backbone=backbone, x=x, y=y)["model"]
    assert model.layers[-1].phase == "wnll"
    assert accuracy(model, images) > 0.4
    # The file includes the template and the phase.
    saved = keras.saving.load_model("classifier.keras")
    assert saved.layers[-1].phase == "wnll"
    np.testing.assert_allclose(
        saved.predict(images[0], verbose=0), model.predict(images[0], verbose=0), atol=1e-4
    )
    model = run(WNLL[1], kr=kr, model=model, x=x, y=y)["model"]
    assert accuracy(model, images) > 0.4


def test_a_growing_radius_for_wnll():
    found = {"keras": keras, "kr": kr, "num_steps": 100}
    exec(WNLL[2], found)
    radii = [float(found["growing"](step)) for step in (0, 25, 50, 100)]
    np.testing.assert_allclose(radii, np.array([0, 4, 8, 8]) / 255, rtol=1e-6)
    assert found["loss"].attack.epsilon is found["growing"]


@pytest.mark.skipif(keras.backend.backend() != "jax", reason="keras.distribution is for JAX")
def test_one_machine_with_jax():
    try:
        exec(SCALING[0], {})
        assert isinstance(keras.distribution.distribution(), keras.distribution.DataParallel)
    finally:
        keras.distribution.set_distribution(None)


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="needs TensorFlow")
def test_one_machine_with_tensorflow():
    x, y = np.full((16, 4), 0.5, "float32"), np.arange(16) % 2
    before = []

    def make_classifier():
        base = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
        before.extend(base.get_weights())
        return base

    found = {"kr": kr, "attack": kr.attacks.FGSM(0.1), "x": x, "y": y}
    found["make_classifier"] = make_classifier
    exec(SCALING[1], found)
    after = found["model"].base_model.get_weights()
    assert any((a != b).any() for a, b in zip(before, after, strict=True))


def test_all_processes_start_from_the_first_backup(tmp_path, monkeypatch):
    # test_two_processes.py tests the code of the block before, which trains in two processes.
    compile(SCALING[2], "example", "exec")
    monkeypatch.chdir(tmp_path)
    for number in range(2):
        pathlib.Path(f"backup/{number}").mkdir(parents=True)
        pathlib.Path(f"backup/{number}/file").write_text(str(number))
    found = {"keras": keras, "os": os, "shutil": shutil, "number": 1}
    exec(SCALING[3], found)
    assert pathlib.Path("backup/1/file").read_text() == "0"
    assert isinstance(found["callback"], keras.callbacks.BackupAndRestore)


# A warning of JAX in Keras's export to a SavedModel.
@pytest.mark.filterwarnings("ignore:.*`native_serialization`:DeprecationWarning")
@pytest.mark.parametrize("code", blocks(ROOT / "docs/supported.md"))
def test_examples_of_supported_features(code, run):
    """The examples have their own assertions, or only need to run."""
    run(code)


@pytest.mark.parametrize("path", PAGES, ids=lambda p: p.name)
def test_links_have_a_target(path):
    for target in re.findall(r"\]\(([^)]+)\)", path.read_text()):
        if not target.startswith("http"):
            name, _, heading = target.partition("#")
            page = path.parent / name if name else path
            assert page.exists(), target
            headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE) if heading else []
            anchors = [re.sub(r"[^\w -]", "", text.lower()).replace(" ", "-") for text in headings]
            assert not heading or heading in anchors, target


def test_the_pages_of_results_agree_with_the_records(tmp_path):
    # In a separate process, because modules of the papers have the same names as others.
    code = (
        "import pathlib, sys; sys.path.insert(0, sys.argv[1]); import paper_pages, report; "
        "report.PICTURES = paper_pages.PICTURES = pathlib.Path(sys.argv[2]); "
        "[pathlib.Path(sys.argv[2], n.replace('/', ' ')).write_text(t) "
        "for n, t in report.pages().items()]"
    )
    command = [sys.executable, "-c", code, ROOT / "benchmarks", tmp_path]
    subprocess.run(command, check=True, cwd=ROOT)
    pages = (ROOT / "docs" / "results").glob("*.md")
    names = ["README", "docs/results", *(f"docs/results/{path.stem}" for path in pages)]
    assert len(names) == 8
    for name in names:
        expected = (ROOT / f"{name}.md").read_text()
        assert (tmp_path / name.replace("/", " ")).read_text() == expected


def test_curves_are_means_over_seeds():
    # In a separate process, as above.
    code = (
        "import json, sys; sys.path.insert(0, sys.argv[1]); import paper_pages; "
        "seeds = [{'clean': 1.0, 'FGSM 8': 0.6, 'errors': [0.1, 0.3]}, "
        "{'clean': 0.8, 'FGSM 8': 0.2, 'errors': [0.3, 0.7]}]; "
        "curves = {**paper_pages.lists(seeds, 'layer'), **paper_pages.series(seeds, 'radius')}; "
        "print(json.dumps({**curves, 'from 0': paper_pages.lists(seeds, 'epoch', 0)['errors']}))"
    )
    command = [sys.executable, "-c", code, ROOT / "benchmarks"]
    printed = subprocess.run(command, check=True, cwd=ROOT, capture_output=True, text=True).stdout
    assert json.loads(printed) == {
        "errors": [[1, 2], pytest.approx([0.2, 0.5]), "layer"],
        "from 0": [[0, 1], pytest.approx([0.2, 0.5]), "epoch"],
        "FGSM": [[0.0, 8.0], pytest.approx([0.9, 0.4]), "radius"],
    }
