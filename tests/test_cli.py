"""The command `keras-robust`: its results, errors and exit status."""

import importlib
import inspect
import itertools
import json
import pathlib
import signal
import subprocess
import sys
import time
import tomllib
import zipfile

import keras
import pytest

import keras_robust as kr
from keras_robust.cli import main
from keras_robust.cli.attacks import ATTACKS, OFFERED, check_attacks, make_attack
from keras_robust.cli.options import parser
from keras_robust.evaluation import evaluate

pytestmark = pytest.mark.slow_on_jax

DATA = ["--dataset", "fashion_mnist_subset", "--num-examples", "24"]
FGSM = ["--attack", "fgsm", "--epsilon", "8/255"]
COMMAND = [sys.executable, "-c", "import sys; from keras_robust.cli import main; sys.exit(main())"]


@pytest.fixture(scope="session")
def files(trained_model, tmp_path_factory):
    """Returns the paths of model files by name."""
    folder = tmp_path_factory.mktemp("models")
    keras.utils.set_random_seed(0)
    image, small = keras.Input((28, 28, 1)), keras.Input((8, 8, 3))
    flatten, softmax = keras.layers.Flatten(), keras.layers.Softmax()
    for name, model in {
        "logits": trained_model,
        "probabilities": keras.Model(image, softmax(trained_model(image))),
        "three": keras.Model(image, keras.layers.Dense(3)(flatten(image))),
        "other": keras.Model(image, keras.layers.Dense(10)(flatten(image))),
        "small": keras.Model(small, keras.layers.Dense(10)(keras.layers.Flatten()(small))),
    }.items():
        model.save(folder / f"{name}.keras")
    return {path.stem: str(path) for path in folder.glob("*.keras")}


def error_of(capsys, argv):
    """Runs a command that fails, and returns the single line of its error."""
    assert main(argv) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("keras-robust: error: ")
    assert captured.err.count("\n") == 1
    return captured.err


@pytest.mark.slow
def test_the_report_agrees_with_evaluate(files, trained_model, embedded_data, tmp_path, capsys):
    argv = ["evaluate", files["logits"], *DATA, "--attack", "PGD", "--attack", "fgsm"]
    argv += ["--epsilon", "1/20", "--num-steps", "3", "--seed", "5", "--output", str(tmp_path)]
    assert main([*argv, "--no-checks"]) == 0
    printed = capsys.readouterr().out
    saved = json.loads((tmp_path / "report.json").read_text())
    x, y = (values[:24] for values in embedded_data[1])
    attacks = [kr.attacks.PGD(0.05, num_steps=3), kr.attacks.FGSM(0.05)]
    expected = kr.evaluate(trained_model, x, y, attacks, seed=5, checks=False, verbose=0)
    assert saved["rows"] == expected.to_dict()["rows"]
    assert [row["name"] for row in saved["rows"][1:3]] == [
        "PGD(epsilon=0.05, num_steps=3)",
        "FGSM(epsilon=0.05)",
    ]
    assert saved["notes"]["command"].startswith("keras-robust evaluate ")
    assert saved["notes"]["outputs"] == "logits"
    num_robust = int(expected.row("clean").correct.sum())
    assert f"FGSM(epsilon=0.05) on {num_robust} of 24 examples" in printed
    assert "look like logits" in printed
    assert expected.statement in printed
    assert str(tmp_path / "report.html") in printed
    assert "--attack PGD" in (tmp_path / "report.html").read_text()


@pytest.mark.slow
def test_probabilities_are_detected(files, tmp_path, capsys):
    rows = {}
    for name, given in itertools.product(("logits", "probabilities"), (False, True)):
        argv = ["evaluate", files[name], *DATA, *FGSM, "--no-checks", "--output", str(tmp_path)]
        assert main([*argv, f"--from-{name}"] if given else argv) == 0
        printed = capsys.readouterr().out
        assert (f"look like {name} (--from-{name})" in printed) != given
        saved = json.loads((tmp_path / "report.json").read_text())["rows"]
        rows[name, given] = [(row["name"], row["accuracy"]) for row in saved]
    assert len(set(map(str, rows.values()))) == 1
    assert 0 < rows["logits", True][1][1] < rows["logits", True][0][1]


def test_every_attack_is_offered():
    classes = {
        value
        for value in vars(kr.attacks).values()
        if inspect.isclass(value) and issubclass(value, kr.attacks.Attack)
    }
    assert set(ATTACKS.values()) == classes - {kr.attacks.Attack}
    for name, attack in ATTACKS.items():
        assert attack.__name__.lower() == name
    assert {"fgsm", "pgd", "autoattack"} <= set(OFFERED)
    assert "gaussiannoise" not in OFFERED


@pytest.mark.parametrize("name", sorted(ATTACKS))
def test_attacks_get_their_options(name):
    given = {"epsilon": 0.25, "norm": "linf", "num_steps": 3, "bounds": (-1.0, 2.0)}
    given["version"] = "fast"
    parameters = inspect.signature(ATTACKS[name]).parameters
    needed = {n for n, p in parameters.items() if p.default is inspect.Parameter.empty}
    argv = ["evaluate", "m.keras", *DATA, "--attack", name.upper(), "--bounds", "-1", "2"]
    for option in ("epsilon", "norm", "num_steps"):
        if option in parameters:
            argv += [f"--{option.replace('_', '-')}", str(given[option])]
    argv += ["--fast"] if "version" in parameters else []
    options = parser().parse_args(argv)
    if needed - {"epsilon"}:
        with pytest.raises(ValueError, match="in Python"):
            check_attacks(options)
        return
    check_attacks(options)
    attack = make_attack(name, options, from_logits=False)
    assert type(attack) is ATTACKS[name]
    for argument, value in (given | {"from_logits": False}).items():
        if argument in parameters:
            assert getattr(attack, argument) == value


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "missing.keras"}, "no file 'missing.keras'"),
        ({"model": "model.h5"}, "does not end in .keras"),
        ({"model": "damaged"}, "cannot be loaded"),
        ({"model": "three"}, "from 0 to 2"),
        ({"model": "small"}, "cannot be run on images of shape (28, 28, 1), the shape in the data"),
        ({"--dataset": "no_such_data"}, "no_such_data"),
        ({"--split": "validation"}, "validation"),
        ({"--num-examples": "0"}, "--num-examples: expected an integer of at least 1, not '0'"),
        ({"--num-examples": "many"}, "--num-examples"),
        ({"--epsilon": "8/0"}, "--epsilon: expected a number or a fraction"),
        ({"--epsilon": "nan"}, "--epsilon: expected"),
        ({"--epsilon": "inf"}, "--epsilon: expected"),
        ({"--epsilon": "eight"}, "--epsilon: expected"),
        ({"--epsilon": "-0.1"}, "`epsilon`"),
        ({"--epsilon": None}, "--attack fgsm needs --epsilon"),
        ({"--attack": "dgp"}, "--attack must be one of"),
        ({"--attack": None}, "--attack"),
        ({"--num-steps": "3"}, "no --attack takes --num-steps"),
        ({"--fast": []}, "no --attack takes --fast"),
        ({"--norm": "l3"}, "--norm"),
        ({"--norm": "l2", "--attack": "ifgsm"}, "has the norm linf, not l2"),
        ({"--bounds": ["1", "0"]}, "`bounds`"),
        ({"--from-probabilities": []}, "`from_logits=False` was given"),
        ({"--from-logits": [], "--from-probabilities": []}, "not allowed with"),
        ({"--resume": []}, "--resume needs the --output"),
        ({"--output": "damaged.keras"}, "damaged.keras"),
        ({"--import": "no_such_module"}, "--import no_such_module: ModuleNotFoundError"),
        ({"--transfer-from": "missing.keras"}, "--transfer-from is for the checks"),
        ({"--unknown": []}, "unrecognized arguments: --unknown"),
    ],
    ids=str,
)
def test_bad_input(files, changes, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    pathlib.Path("damaged.keras").write_bytes(b"no zip file")
    options = {
        "--dataset": "fashion_mnist_subset",
        "--num-examples": "24",
        "--attack": "fgsm",
        "--epsilon": "8/255",
        "--no-checks": [],
        **changes,
    }
    model = options.pop("model", "logits")
    argv = ["evaluate", {**files, "damaged": "damaged.keras"}.get(model, model)]
    for name, value in options.items():
        if value is not None:
            argv += [name, *([value] if isinstance(value, str) else value)]
    assert message in error_of(capsys, argv)


@pytest.mark.slow
def test_transfer_from_another_model(files, tmp_path, capsys):
    argv = ["evaluate", files["logits"], *DATA, *FGSM, "--output", str(tmp_path)]
    assert main([*argv, "--transfer-from", files["other"]]) in (0, 3)
    assert "Report:" in capsys.readouterr().out
    checks = json.loads((tmp_path / "report.json").read_text())["checks"]
    figures = {check["name"]: check["figures"] for check in checks}["white-box beats transfer"]
    assert 0 < figures["compared_accuracy"] <= 1
    for other, message in [
        ("missing.keras", "no file 'missing.keras'"),
        ("model.h5", "does not end in .keras"),
        (files["small"], "`transfer_from` must be another model"),
        (files["probabilities"], "ends in a softmax"),
    ]:
        assert message in error_of(capsys, [*argv, "--transfer-from", other])


def test_a_missing_command_is_an_error(capsys):
    assert "COMMAND" in error_of(capsys, [])


def test_lambda_layers_are_not_run(tmp_path, capsys, monkeypatch):
    harmed = tmp_path / "harmed"
    monkeypatch.setenv("HARMED", str(harmed))
    # The file contains the code of the lambda, which must import what it needs.
    harm = keras.layers.Lambda(
        lambda x: __import__("pathlib").Path(__import__("os").environ["HARMED"]).touch() or x
    )
    layers = [keras.Input((28, 28, 1)), harm, keras.layers.Flatten(), keras.layers.Dense(10)]
    path = str(tmp_path / "lambda.keras")
    keras.Sequential(layers).save(path)
    assert harmed.exists()
    harmed.unlink()
    message = error_of(capsys, ["evaluate", path, *DATA, *FGSM])
    assert "Lambda layer" in message
    assert "--import MODULE" in message
    assert not harmed.exists()


MODULE = """
import keras

@keras.saving.register_keras_serializable(package="custom_for_test")
class Negative(keras.layers.Layer):
    def call(self, x):
        return -x
"""


def test_custom_layers_are_imported_on_demand(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    pathlib.Path("custom_for_test.py").write_text(MODULE)
    with monkeypatch.context() as patch:
        patch.syspath_prepend(tmp_path)
        module = importlib.import_module("custom_for_test")
    layers = [keras.Input((28, 28, 1)), module.Negative(), keras.layers.Flatten()]
    keras.Sequential([*layers, keras.layers.Dense(10)]).save("custom.keras")
    # As in a new process, where the module has not been imported.
    del sys.modules["custom_for_test"]
    keras.saving.get_custom_objects().pop("custom_for_test>Negative")

    argv = ["evaluate", "custom.keras", *DATA, *FGSM, "--no-checks"]
    message = error_of(capsys, argv)
    assert "'Negative'" in message
    assert "--import MODULE" in message
    assert "custom_for_test" not in sys.modules
    assert main([*argv, "--import", "custom_for_test"]) == 0
    sys.modules.pop("custom_for_test")
    keras.saving.get_custom_objects().pop("custom_for_test>Negative")


def test_modules_named_in_a_file_are_not_imported(files, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    pathlib.Path("harmful.py").write_text("import pathlib; pathlib.Path('harmed').touch()")
    with (
        zipfile.ZipFile(files["logits"]) as source,
        zipfile.ZipFile("evil.keras", "w") as target,
    ):
        for name in source.namelist():
            data = source.read(name)
            if name == "config.json":
                data = data.replace(b'"module": "keras.layers"', b'"module": "harmful"')
            target.writestr(name, data)
    error_of(capsys, ["evaluate", "evil.keras", *DATA, *FGSM])
    assert not pathlib.Path("harmed").exists()


def test_layers_of_this_package_need_no_import(tmp_path, capsys):
    head = kr.layers.TanhClassifier(10)
    model = keras.Sequential([keras.Input((28, 28, 1)), keras.layers.Flatten(), head])
    kr.RobustModel(model).save(tmp_path / "robust.keras")
    argv = ["evaluate", str(tmp_path / "robust.keras"), *DATA, *FGSM, "--no-checks"]
    assert main(argv) == 0


def test_the_exit_status_shows_a_failed_check(files, monkeypatch, capsys):
    def checked(*args, **kwargs):
        report = evaluate(*args, **{**kwargs, "checks": False})
        report.checks = [kr.evaluation.CheckResult("gradients", passed, "A sentence.")]
        return report

    # `keras_robust.cli.main` is the function, which has the same name as its module.
    monkeypatch.setattr(sys.modules["keras_robust.cli.main"], "evaluate", checked)
    for passed, status in ((True, 0), (None, 0), (False, 3)):
        assert main(["evaluate", files["logits"], *DATA, *FGSM]) == status
        assert ("CHECKS FAILED" in capsys.readouterr().out) == (passed is False)


def test_the_script_is_declared(monkeypatch):
    file = pathlib.Path(__file__).parent.parent / "pyproject.toml"
    declared = tomllib.loads(file.read_text())
    module, name = declared["project"]["scripts"]["keras-robust"].split(":")
    assert module in declared["tool"]["setuptools"]["py-modules"]
    monkeypatch.syspath_prepend(file.parent)
    monkeypatch.setattr("keras_robust.cli.main", lambda: 7)
    assert getattr(importlib.import_module(module), name)() == 7


def test_help(capsys):
    with pytest.raises(SystemExit) as exit:
        main(["evaluate", "--help"])
    assert exit.value.code == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in OFFERED)


@pytest.mark.slow
def test_errors_have_no_traceback():
    command = [*COMMAND, "evaluate", "missing.keras", *DATA, *FGSM]
    refused = subprocess.run(command, capture_output=True, text=True)
    assert refused.returncode == 2
    assert refused.stderr.splitlines()[-1].startswith("keras-robust: error: there is no file")
    assert "Traceback" not in refused.stderr


@pytest.mark.slow
def test_ctrl_c_and_resume(files, tmp_path, trained_model, embedded_data):
    argv = ["evaluate", files["logits"], *DATA[:2], "--num-examples", "100", "--attack", "pgd"]
    argv += ["--epsilon", "0.05", "--num-steps", "60", "--batch-size", "4", "--no-checks"]
    argv += ["--output", str(tmp_path)]
    # Processes that a shell starts in the background ignore Ctrl-C, possibly including the tests.
    enable_ctrl_c = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    *python, code = COMMAND
    process = subprocess.Popen(
        [*python, enable_ctrl_c + code, *argv], stderr=subprocess.PIPE, stdout=subprocess.PIPE
    )
    first = tmp_path / "progress" / "00-00000.npz"
    while not first.exists() and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate()
    assert process.returncode == 130, error
    assert b"run the same command with --resume" in error.splitlines()[-1]
    assert b"Traceback" not in error
    finished = {path: path.stat().st_mtime_ns for path in tmp_path.glob("progress/00-*.npz")}
    assert finished
    assert not (tmp_path / "report.html").exists()

    assert main([*argv, "--resume"]) == 0
    assert all(path.stat().st_mtime_ns == modified for path, modified in finished.items())
    saved = json.loads((tmp_path / "report.json").read_text())
    x, y = (values[:100] for values in embedded_data[1])
    uninterrupted = kr.evaluate(
        trained_model, x, y, [kr.attacks.PGD(0.05, num_steps=60)], batch_size=4, checks=False,
        verbose=0,
    )  # fmt: skip
    assert saved["rows"] == uninterrupted.to_dict()["rows"]
    num_batches = -(-int(uninterrupted.row("clean").correct.sum()) // 4)
    assert len(finished) < num_batches
