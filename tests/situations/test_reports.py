"""A saved report is loaded unchanged. One attack or number may be passed without a list."""

import json

import keras
import numpy as np
import pytest

import keras_robust as kr

pytestmark = pytest.mark.slow_on_jax


@pytest.fixture(scope="module")
def data(embedded_data):
    return tuple(values[:40] for values in embedded_data[1])


@pytest.fixture(scope="module")
def saved(classifier, data, tmp_path_factory):
    """Returns a report and the folder in which it is saved."""
    folder = tmp_path_factory.mktemp("report")
    attacks = [kr.attacks.FGSM(0.05), kr.attacks.PGD(0.02, num_steps=2)]
    report = kr.evaluate(
        classifier, *data, attacks, output=folder, checks=False, notes={"who": "me"}, verbose=0
    )
    report.checks = [
        kr.evaluation.CheckResult("a", True, "It is.", {"n": 3.0}),
        kr.evaluation.CheckResult("b", False, "It is not.", {"share": float("inf")}),
        kr.evaluation.CheckResult("c", None, "Nobody knows."),
    ]
    report.curves = {
        "epsilon": {"FGSM": {0.0: 0.5, 0.1: 0.25}},
        "steps": {"PGD": {1: 0.5, 20: 0.25}},
    }
    points = np.random.default_rng(0).random((6, 2))
    classes = np.arange(6) % 3
    report.geometry = kr.evaluation.FeatureGeometry(
        points, points + 1, classes, classes, (classes + 1) % 3, "pca", np.array([0.5, 0.2])
    )
    report.save(folder)
    return report, folder


def test_a_loaded_report_has_the_same_texts_and_files(saved, tmp_path, capsys):
    report, folder = saved
    loaded = kr.evaluation.Report.load(folder)
    assert loaded.to_dict() == report.to_dict()
    assert loaded.summary() == report.summary()
    assert loaded.accuracy("worst case") == report.accuracy("worst case")
    assert kr.evaluation.comparison_table({"a": loaded, "b": report})
    loaded.save(tmp_path)
    names = {path.name for path in folder.iterdir() if path.is_file()}
    assert {path.name for path in tmp_path.iterdir()} == names
    assert {"report.html", "report.json", "samples.png", "geometry.png"} < names
    for name in names - {"report.npz"}:
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes(), name


def test_results_of_each_example_are_loaded(saved):
    report, folder = saved
    loaded = kr.evaluation.Report.load(folder)
    for row, other in zip(report.rows, loaded.rows, strict=True):
        np.testing.assert_array_equal(row.correct, other.correct)
        assert row.measures.keys() == other.measures.keys()
    name = report.rows[1].name
    for images, others in zip(report.samples[name], loaded.samples[name], strict=True):
        np.testing.assert_array_equal(images, others)


def test_a_loaded_report_keeps_versions_device_and_date(saved, tmp_path):
    _, folder = saved
    for name in ("report.json", "report.npz"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    saved_json = json.loads((tmp_path / "report.json").read_text())
    saved_json |= {"keras": "3.0.0", "device": "another", "date": "2020-01-01"}
    (tmp_path / "report.json").write_text(json.dumps(saved_json))
    loaded = kr.evaluation.Report.load(tmp_path)
    assert loaded.to_dict() == saved_json
    loaded.save(tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert "3.0.0" in page
    assert keras.__version__ not in page


def test_a_report_without_a_schema_can_be_loaded(saved, tmp_path):
    report, folder = saved
    old = json.loads((folder / "report.json").read_text())
    del old["schema"]
    (tmp_path / "report.json").write_text(json.dumps(old))
    loaded = kr.evaluation.Report.load(tmp_path)
    assert loaded.summary() == report.summary()
    assert loaded.to_dict() == report.to_dict()
    with pytest.raises(AttributeError, match=r"without its `report.npz` has no 'correct'"):
        loaded.row("clean").correct  # noqa: B018
    loaded.save(tmp_path)
    assert kr.evaluation.Report.load(tmp_path).to_dict() == report.to_dict()


def test_a_report_of_a_newer_version_is_an_error(saved, tmp_path):
    newer = json.loads((saved[1] / "report.json").read_text())
    newer |= {"schema": 99, "keras_robust": "9.9"}
    (tmp_path / "report.json").write_text(json.dumps(newer))
    with pytest.raises(ValueError, match=r"newer version of keras_robust, 9\.9.*Update"):
        kr.evaluation.Report.load(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"must be a folder that holds report\.json"),
        ("{", "is damaged: it is not valid JSON"),
        ("[]", "is not a keras_robust report"),
        ("{}", "is not a complete keras_robust report"),
        ('{"schema": "one"}', "is not a keras_robust report"),
    ],
)
def test_files_that_are_not_reports_are_an_error(content, message, tmp_path):
    if content is not None:
        (tmp_path / "report.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        kr.evaluation.Report.load(tmp_path)


def test_arrays_that_do_not_match_the_report_are_an_error(saved, classifier, data, tmp_path):
    _, folder = saved
    (tmp_path / "report.json").write_bytes((folder / "report.json").read_bytes())
    content = (folder / "report.npz").read_bytes()
    (tmp_path / "report.npz").write_bytes(content[:-100])
    with pytest.raises(ValueError, match=r"report\.npz' is damaged"):
        kr.evaluation.Report.load(tmp_path)
    other = kr.evaluate(classifier, *data, kr.attacks.FGSM(0.3), checks=False, verbose=0)
    other.save_json(tmp_path / "other")
    (tmp_path / "report.npz").write_bytes((tmp_path / "other" / "report.npz").read_bytes())
    with pytest.raises(ValueError, match=r"does not belong to the report\.json beside it"):
        kr.evaluation.Report.load(tmp_path)


def test_an_unfinished_report_can_be_loaded(classifier, data, tmp_path, monkeypatch):
    class Stopping(kr.attacks.FGSM):
        def generate(self, *arguments, **named):
            raise KeyboardInterrupt

    attacks = {"first": kr.attacks.FGSM(0.05), "second": Stopping(0.05)}
    with pytest.raises(KeyboardInterrupt):
        kr.evaluate(classifier, *data, attacks, output=tmp_path, verbose=0)
    loaded = kr.evaluation.Report.load(tmp_path)
    assert [row.name for row in loaded.rows] == ["clean", "first"]
    assert not loaded.complete
    assert "not finished" in loaded.statement


def test_one_attack_equals_a_list_of_one(classifier, data):
    attack = kr.attacks.FGSM(0.05)
    one, several = (
        kr.evaluate(classifier, *data, attacks, checks=False, verbose=0).to_dict()
        for attacks in (attack, [attack])
    )
    assert one["rows"] == several["rows"]
    assert [row["name"] for row in one["rows"]] == ["clean", "FGSM(epsilon=0.05)", "worst case"]


def test_one_number_equals_a_list_of_one(classifier, data):
    attack = kr.attacks.PGD(0.02, num_steps=2)
    options = {"attack": attack, "verbose": 0}
    evaluation = kr.evaluation
    assert evaluation.robustness_curve(
        classifier, *data, epsilons=0.02, **options
    ) == evaluation.robustness_curve(classifier, *data, epsilons=[0.02], **options)
    assert list(evaluation.steps_curve(classifier, *data, num_steps=2, **options)) == [2]
    assert list(evaluation.noise_accuracy(classifier, *data, stddevs=0.1, verbose=0)) == [0.1]
    fractions = evaluation.accuracy_at(classifier, *data, epsilon=0.02, fractions=0.5, **options)
    assert list(fractions) == [0.5]
    name = classifier.layers[-1].name
    x = data[0]
    assert list(evaluation.perturbation_error(classifier, x, x, layers=name)) == [name]


def test_a_model_at_chance_fails_a_check(classifier, embedded_data):
    x, y = (values[:200] for values in embedded_data[1])
    renumbered = (y + 1) % 10
    report = kr.evaluate(classifier, x, renumbered, kr.attacks.GaussianNoise(0.1), verbose=0)
    failed = {check.name: check.sentence for check in report.failed_checks}
    assert "knows nothing about these images" in failed["clean accuracy is above chance"]
    assert "do not trust" in report.verdict
    report = kr.evaluate(classifier, x, y, kr.attacks.GaussianNoise(0.1), verbose=0)
    assert report.failed_checks == []
