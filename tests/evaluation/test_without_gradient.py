"""Models without a gradient: reports say which attacks could not run."""

import json

import keras
import numpy as np
import pytest
from keras import ops

import keras_robust as kr

IS_TENSORFLOW = keras.backend.backend() == "tensorflow"
NOT_ZERO, DIFFERENCES = (
    "the gradient is not zero", "the gradient agrees with finite differences",
)  # fmt: skip

# Images of one pixel with 60 distances to the threshold, on both sides of it.
DISTANCES = np.tile(np.linspace(0.002, 0.4985, 60, dtype="float32"), 2)
Y = np.repeat([0, 1], 60)
X = (0.5 + (2 * Y - 1) * DISTANCES).astype("float32").reshape(-1, 1, 1, 1)
FOOLED = DISTANCES < 0.1

# On JAX, a random start would fool some examples.
PGD = kr.attacks.PGD(0.1, num_steps=3, random_start=False)
SQUARE = kr.attacks.Square(0.1, num_queries=60)


def flat(x):
    """Predicts class 1 if the pixel is greater than 0.5. Its logits have no gradient."""
    z = 10 * (ops.stop_gradient(x)[:, 0, 0, 0] - 0.5)
    return ops.stack([-z, z], axis=1)


def evaluate(attacks, **options):
    return kr.evaluate(flat, X, Y, attacks, batch_size=50, **{"verbose": 0, **options})


@pytest.mark.slow_on_jax
def test_only_square_finds_the_robust_accuracy():
    report = evaluate({"PGD": PGD, "DeepFool": kr.attacks.DeepFool(), "Square": SQUARE})
    assert report.accuracy("PGD") == report.accuracy("DeepFool") == 1
    for name in ("Square", "worst case"):
        np.testing.assert_array_equal(report.row(name).correct, ~FOOLED)
    assert {NOT_ZERO, DIFFERENCES} <= {check.name for check in report.failed_checks}
    notes = {row.name: row.note for row in report.rows if row.note}
    if IS_TENSORFLOW:
        assert notes == {
            "PGD": "no gradient: PGD could not run",
            "DeepFool": "no gradient: DeepFool could not run",
        }
        assert report.row("PGD").cost("num_gradients") == 0
    else:
        assert notes == {}


@pytest.mark.parametrize("nested", [False, True])
def test_an_ensemble_continues_with_attacks_that_need_no_gradient(nested):
    members = [PGD, kr.attacks.FAB(0.1, num_steps=2), PGD, SQUARE]
    if nested:
        members = [kr.attacks.Ensemble(members[:2]), *members[2:]]
    report = evaluate({"all": kr.attacks.Ensemble(members)}, checks=False)
    np.testing.assert_array_equal(report.row("all").correct, ~FOOLED)
    if IS_TENSORFLOW:
        assert report.row("all").note == "no gradient: PGD, FAB could not run"


def test_every_form_of_the_report_has_the_note(tmp_path, capsys):
    report = evaluate({"<b>": PGD, "Square": SQUARE}, checks=False, output=tmp_path)
    note = "no gradient: PGD could not run" if IS_TENSORFLOW else ""
    saved = json.loads((tmp_path / "report.json").read_text())["rows"]
    assert [row["note"] for row in saved] == ["", note, "", ""]
    lines = report.summary().splitlines()
    assert [line.endswith("could not run") for line in lines[1:5]] == [
        False,
        bool(note),
        False,
        False,
    ]
    page = (tmp_path / "report.html").read_text()
    assert page.count("could not run") == bool(note)
    assert page.count(f'<th scope="row">&lt;b&gt;{"<br>" * bool(note)}{note}</th>') == 1


def test_the_note_is_kept_when_the_evaluation_is_resumed(tmp_path):
    attacks = {"PGD": PGD, "Square": SQUARE}
    first, second = (
        evaluate(attacks, checks=False, output=tmp_path, resume=resume).to_dict()["rows"]
        for resume in (False, True)
    )
    assert first == second
    assert bool(first[1]["note"]) == IS_TENSORFLOW


def test_curves_are_of_an_attack_that_could_run():
    report = evaluate({"PGD": PGD, "Square": SQUARE}, checks=False, pictures=True)
    name = "Square" if IS_TENSORFLOW else "PGD"
    assert list(report.curves["epsilon"]) == [name]
    assert set(evaluate({"PGD": PGD}, checks=False, pictures=True).curves) == (
        set() if IS_TENSORFLOW else {"epsilon", "steps"}
    )


@pytest.mark.skipif(not IS_TENSORFLOW, reason="JAX gives a gradient of 0")
def test_an_attack_outside_of_evaluate_raises_an_error():
    evaluate({"PGD": PGD}, checks=False)
    for attack in (PGD, kr.attacks.Ensemble([SQUARE, PGD])):
        for function in (
            lambda attack: attack(flat, X, Y),
            lambda attack: kr.evaluation.robust_accuracy(flat, X, Y, attack=attack),
        ):
            with pytest.raises(ValueError, match="no gradient with respect to its input"):
                function(attack)
