"""Merging an evaluation in shares gives the report of one process."""

import json
import pathlib
import shutil

import keras
import numpy as np
import pytest

import keras_robust as kr
from keras_robust.cli import main

RNG = np.random.default_rng(0)
CENTERS = RNG.random((3, 4, 4, 1))
Y = np.arange(50) % 3
X = np.clip(CENTERS[Y] + 0.25 * RNG.normal(size=(50, 4, 4, 1)), 0, 1).astype("float32")
# Some labels are wrong, so that not all examples are classified correctly.
LABELS = np.where(np.arange(50) % 9 == 4, (Y + 1) % 3, Y)
ATTACKS = {
    "PGD": kr.attacks.PGD(0.1, num_steps=3),
    "DeepFool": kr.attacks.DeepFool(num_steps=5),
    "Square": kr.attacks.Square(0.1, num_queries=10),
}


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [keras.Input((4, 4, 1)), keras.layers.Flatten(), keras.layers.Dense(3)]
    )
    model.compile(
        keras.optimizers.Adam(0.05), keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    )
    model.fit(X, Y, epochs=10, verbose=0)
    return model


def evaluate(model, **arguments):
    arguments = {"attacks": ATTACKS, "batch_size": 8, "seed": 3, "verbose": 0} | arguments
    arguments.setdefault("class_names", ["a", "b", "c"])
    return kr.evaluate(model, X, LABELS, **arguments)


def figures(report):
    return {k: v for k, v in report.to_dict().items() if k != "date"}


def evaluate_shares(model, folder, count=3):
    folders = [folder / str(number) for number in range(1, count + 1)]
    reports = [
        evaluate(model, output=path, shard=(number, count))
        for number, path in enumerate(folders, start=1)
    ]
    return folders, reports


@pytest.fixture(scope="module")
def shares(model, tmp_path_factory):
    return evaluate_shares(model, tmp_path_factory.mktemp("shares"))


def test_the_merged_report_equals_that_of_one_process(model, shares, tmp_path):
    expected = evaluate(model, checks=False)
    assert 0 < expected.accuracy("worst case") < expected.accuracy("clean") < 1
    found = kr.evaluation.merge(shares[0][::-1], tmp_path)
    assert figures(found) == figures(expected)
    for row, other in zip(found.rows, expected.rows, strict=True):
        np.testing.assert_array_equal(row.correct, other.correct)
    assert [one.name for one in found.per_class] == ["a", "b", "c"]
    np.testing.assert_array_equal(found.labels, LABELS)
    assert found.samples.keys() == expected.samples.keys() != set()
    for name, samples in expected.samples.items():
        for one, other in zip(found.samples[name], samples, strict=True):
            np.testing.assert_array_equal(one, other)
    assert figures(kr.evaluation.Report.load(tmp_path)) == figures(expected)


@pytest.mark.slow
def test_checks_are_added_to_a_merged_report_without_new_attacks(
    model, shares, tmp_path, monkeypatch
):
    kr.evaluation.merge(shares[0], tmp_path)
    expected = evaluate(model)

    def refuse(*args, **kwargs):
        raise AssertionError("was attacked again")

    with monkeypatch.context() as patch:
        for attack in (kr.attacks.DeepFool, kr.attacks.Square):
            patch.setattr(attack, "run_checked", refuse)
        patch.setattr(kr.attacks.Square, "run_checked", kr.attacks.Attack.run_checked)
        found = evaluate(model, output=tmp_path, resume=True)
    assert figures(found) == figures(expected)
    assert found.checks


def test_each_example_is_in_one_share(shares):
    assert sum(report.num_examples for report in shares[1]) == len(X)
    for report in shares[1]:
        assert report.complete
        assert report.checks is None
        attacked = report.row("PGD").attacked
        assert 0 < attacked.sum() <= 24
        assert (report.row("clean").correct == attacked).all()
        assert sum(one.num_examples for one in report.per_class) == report.num_examples
    for number in range(3):
        sizes = [report.per_class[number].num_examples for report in shares[1]]
        assert sum(sizes) == (number == LABELS).sum()


def test_shares_without_labels_can_be_merged(shares, tmp_path):
    folders = [tmp_path / str(number) for number in range(3)]
    for folder, source in zip(folders, shares[0], strict=True):
        shutil.copytree(source, folder)
        np.savez(folder / "progress" / "clean.npz", correct=load_correct(folder))
    found, expected = kr.evaluation.merge(folders), kr.evaluation.merge(shares[0])
    assert found.per_class == []
    assert found.to_dict()["rows"] == expected.to_dict()["rows"]


def load_correct(folder):
    with np.load(folder / "progress" / "clean.npz") as file:
        return file["correct"]


def test_a_share_can_only_be_resumed_as_the_same_share(model, shares, tmp_path):
    folder = tmp_path / "part"
    shutil.copytree(shares[0][1], folder)
    (folder / "progress" / "02-00001.npz").unlink()
    again = evaluate(model, output=folder, shard=(2, 3), resume=True)
    assert figures(again) == figures(shares[1][1])
    with pytest.raises(ValueError, match="other shard"):
        evaluate(model, output=folder, shard=(1, 3), resume=True)


@pytest.mark.slow
def test_only_shares_of_one_evaluation_can_be_merged(model, shares, tmp_path):
    folders = shares[0]
    for wrong in (folders[:2], [*folders, folders[0]], []):
        with pytest.raises(ValueError, match="each share of one evaluation once"):
            kr.evaluation.merge(wrong)
    evaluate(model, output=tmp_path / "seed", shard=(3, 3), seed=4)
    with pytest.raises(ValueError, match=r"'.*seed' was evaluated with other seed than '.*1'"):
        kr.evaluation.merge([*folders[:2], tmp_path / "seed"])
    evaluate(model, output=tmp_path / "whole")
    with pytest.raises(ValueError, match="must be folders of shares"):
        kr.evaluation.merge([*folders[:2], tmp_path / "whole"])
    with pytest.raises(ValueError, match="must be folders of shares"):
        kr.evaluation.merge([tmp_path / "nothing"])


def test_an_unfinished_share_cannot_be_merged(model, shares, tmp_path):
    folder = tmp_path / "unfinished"
    shutil.copytree(shares[0][2], folder)
    report = kr.evaluation.Report.load(folder)
    report.rows.pop()
    report.save_json(folder)
    with pytest.raises(ValueError, match="is not finished"):
        kr.evaluation.merge([*shares[0][:2], folder])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"shard": (0, 3)}, "from 1 to n. Received: shard=\\(0, 3\\)"),
        ({"shard": (4, 3)}, "from 1 to n"),
        ({"shard": 2}, "must be a pair"),
        ({"shard": (1, 2), "output": None}, "needs an `output`"),
        ({"shard": (1, 2), "worst_case_only": True}, "`worst_case_only` needs"),
        ({"shard": (1, 2), "pictures": True}, "`pictures` needs"),
        ({"shard": (90, 90)}, "fewer than 90 batches"),
    ],
)
def test_bad_shards(model, tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        evaluate(model, **{"output": tmp_path, **arguments})


@pytest.mark.slow
def test_shards_and_merge_in_the_command_line(tmp_path, capsys):
    keras.utils.set_random_seed(0)
    layers = [keras.Input((28, 28, 1)), keras.layers.Flatten(), keras.layers.Dense(10)]
    path = str(tmp_path / "model.keras")
    keras.Sequential(layers).save(path)
    argv = ["evaluate", path, "--dataset", "fashion_mnist_subset", "--num-examples", "30"]
    argv += ["--attack", "fgsm", "--epsilon", "0.02", "--batch-size", "1", "--from-logits"]
    folders = [str(tmp_path / name) for name in ("a", "b", "whole")]
    assert main([*argv, "--output", folders[0], "--shard", "1/2"]) == 0
    assert main([*argv, "--output", folders[1], "--shard", "2/2"]) == 0
    assert main([*argv, "--output", folders[2], "--no-checks"]) == 0
    capsys.readouterr()
    merging = ["merge", *folders[:2], "--output", str(tmp_path / "merged")]
    for options, is_shown in (([], False), (["--per-class"], True)):
        assert main([*merging, *options]) == 0
        shown = capsys.readouterr().out
        assert "report.html" in shown
        assert "Worst class: " in shown
        assert ("\nclass " in shown) == is_shown
    rows = [
        json.loads((pathlib.Path(folder) / "report.json").read_text())["rows"]
        for folder in (folders[2], tmp_path / "merged")
    ]
    assert rows[0] == rows[1]
    assert main(["merge", folders[0], "--output", str(tmp_path / "no")]) == 2
    assert "each share" in capsys.readouterr().err
    assert main([*argv, "--output", folders[0], "--shard", "3-2"]) == 2
