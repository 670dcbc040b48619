"""Names, radii and the worst case of several attacks in one evaluation."""

import numpy as np
import pytest
from keras import ops

import keras_robust as kr
from keras_robust.evaluation.attack_list import named_attacks
from keras_robust.metrics.radii import radii

X = np.linspace(0, 1, 40, dtype="float32").reshape(40, 1, 1, 1)
Y = (X[:, 0, 0, 0] > 0.5).astype("int32")
DISTANCE = abs(X[:, 0, 0, 0] - 0.5)


def threshold(x):
    """Predicts class 1 if the only pixel is greater than 0.5."""
    z = 10 * (x[:, 0, 0, 0] - 0.5)
    return ops.stack([-z, z], axis=1)


class Nearest(kr.attacks.Attack):
    """Returns the nearest image of the other class."""

    def generate(self, problem, x, start, index, seed):
        return ops.where(x > 0.5, 0.4999, 0.5001)


def surrogate(model, x, y):
    return model(x)


@pytest.mark.parametrize(
    ("attacks", "names"),
    [
        ([kr.attacks.FGSM(0.1)], ["FGSM(epsilon=0.1)"]),
        ((kr.attacks.FGSM(8 / 255),), ["FGSM(epsilon=0.03137)"]),
        (
            [kr.attacks.PGD(0.1), kr.attacks.PGD(0.1, num_steps=3, norm="l2")],
            ["PGD(epsilon=0.1)", "PGD(epsilon=0.1, num_steps=3, norm=l2)"],
        ),
        # Differences in the seventh digit, and in an argument that names omit.
        (
            [
                kr.attacks.FGSM(0.1),
                kr.attacks.FGSM(0.1000001),
                kr.attacks.FGSM(0.1, bounds=(0.0, 2.0)),
            ],
            ["FGSM(epsilon=0.1)", "FGSM(epsilon=0.1) #2", "FGSM(epsilon=0.1) #3"],
        ),
        (
            [kr.attacks.FGSM(0.1, objective=surrogate)],
            ["FGSM(epsilon=0.1, objective=surrogate)"],
        ),
        (
            [kr.attacks.Ensemble([kr.attacks.FGSM(0.1), kr.attacks.PGD(0.2)])],
            ["Ensemble(attacks=[FGSM(epsilon=0.1), PGD(epsilon=0.2)])"],
        ),
        ({"mine": kr.attacks.FGSM(0.1)}, ["mine"]),
    ],
)
def test_names(attacks, names):
    assert list(named_attacks(attacks)) == names


@pytest.mark.parametrize(
    ("attack", "expected"),
    [
        (kr.attacks.FGSM(0.1), {"linf": 0.1}),
        (kr.attacks.IFGSM(0.1), {"linf": 0.1}),
        (kr.attacks.PGD(0.5, norm="l2"), {"l2": 0.5}),
        (kr.attacks.GaussianNoise(0.1), {}),
        (Nearest(), {}),
        (kr.attacks.Ensemble([kr.attacks.FGSM(0.1), kr.attacks.PGD(0.2)]), {"linf": 0.2}),
        (
            kr.attacks.Ensemble([kr.attacks.FGSM(0.1), kr.attacks.PGD(2.0, norm="l2")]),
            {"linf": 0.1, "l2": 2.0},
        ),
        (kr.attacks.Ensemble([kr.attacks.FGSM(0.1), Nearest()]), {}),
    ],
    ids=str,
)
def test_radii(attack, expected):
    assert radii(attack) == expected


@pytest.mark.parametrize("worst_case_only", [False, True])
def test_the_worst_case_excludes_attacks_without_a_radius(worst_case_only):
    attacks = {"nearest": Nearest(), "FGSM": kr.attacks.FGSM(0.1), "PGD": kr.attacks.PGD(0.3)}
    report = kr.evaluate(
        threshold, X, Y, attacks, worst_case_only=worst_case_only, checks=False, verbose=0
    )
    assert report.accuracy("nearest") == 0.0
    median, largest = report.row("nearest").perturbation("linf")
    assert median == pytest.approx(np.median(DISTANCE), abs=2e-4)
    assert largest == pytest.approx(0.5, abs=2e-4)
    assert report.row("nearest").radius == "no limit"
    np.testing.assert_array_equal(report.row("worst case").correct, DISTANCE > 0.3)
    assert report.row("worst case").radii == {"linf": 0.3}
    assert "Attacks without a radius are left out: nearest." in report.statement
    assert report.summary().splitlines()[2].split()[-4:-2] == ["no", "limit"]


def test_without_any_radius_all_attacks_count_in_the_worst_case():
    report = kr.evaluate(threshold, X, Y, [Nearest()], checks=False, verbose=0)
    assert report.accuracy("worst case") == 0.0
    assert report.row("worst case").radius == ""
    assert "No attack had a radius" in report.statement


def test_an_attack_without_success_has_no_norms():
    report = kr.evaluate(threshold, X, Y, [kr.attacks.FGSM(0.001)], checks=False, verbose=0)
    row = report.rows[1]
    assert row.accuracy == 1.0
    assert row.perturbation("linf") is row.perturbation("l2") is None
    assert row.to_dict()["median_linf"] is None
    assert row.cost("num_gradients") == 1.0
    assert report.samples == {}


def test_worst_case_only_may_leave_no_examples_to_attack():
    attacks = {"all": kr.attacks.FGSM(0.6), "none": kr.attacks.FGSM(0.7)}
    report = kr.evaluate(threshold, X, Y, attacks, worst_case_only=True, checks=False, verbose=0)
    assert report.row("none").to_dict()["num_attacked"] == 0
    assert report.row("none").cost("num_gradients") is None
    assert report.accuracy("worst case") == 0.0


def test_names_with_array_arguments():
    class Masked(kr.attacks.FGSM):
        def __init__(self, epsilon, mask=None):
            super().__init__(epsilon)
            self.mask = mask

    attacks = [Masked(0.1), Masked(0.1, np.ones((4, 4))), kr.attacks.Square(0.1)]
    names = ["Masked(epsilon=0.1)", "Masked(epsilon=0.1, mask=array of shape (4, 4))",
             "Square(epsilon=0.1)"]  # fmt: skip
    assert list(named_attacks(attacks)) == names
