"""Checks of models whose predictions depend on the batch agree with the evaluation."""

import keras
import numpy as np
import pytest
from keras import ops

import keras_robust as kr
from keras_robust.evaluation.checks.registry import CHECKS
from keras_robust.metrics.perturbed import perturbed_images
from keras_robust.model.classifier import Classifier

pytestmark = pytest.mark.slow_on_jax

NO_WEAKER, MORE_STEPS, SINGLE_STEP, SQUARE, TRANSFER, NOISE, CHANCE = list(CHECKS)[1:8]
NOT_ZERO, DIFFERENCES, LOGITS = list(CHECKS)[10:13]
SIZE = 16


class RelativeToMean(keras.layers.Layer):
    """Predicts class 1 if the pixel is greater than twice the batch mean minus 0.5."""

    depends_on_batch = True

    def call(self, x):
        z = 10 * (x[:, 0, 0, 0] + 0.5 - 2 * ops.mean(x))
        return ops.stack([-z, z], axis=1)


def other(x):
    z = x[:, 0, 0, 0] - 0.6
    return ops.stack([-z, z], axis=1)


RNG = np.random.default_rng(3)
X = RNG.random((40, 1, 1, 1), "float32")
X[SIZE:] **= 2  # Changes the means of the later batches.
MODEL = keras.Sequential([keras.Input((1, 1, 1)), RelativeToMean()])


def outputs(x):
    """Computes the outputs of the model in NumPy."""
    z = 10 * (x[:, 0, 0, 0] + 0.5 - 2 * x.mean())
    return np.stack([-z, z], axis=1)


Y = np.concatenate([outputs(X[i : i + SIZE]).argmax(axis=1) for i in (0, SIZE, 2 * SIZE)])
Y[[2, 5, 20]] = 1 - Y[[2, 5, 20]]
CLEAN = outputs(X[:SIZE]).argmax(axis=1) == Y[:SIZE]
ATTACKS = {
    "PGD": kr.attacks.PGD(0.1, num_steps=20),
    "PGD-5": kr.attacks.PGD(0.1, num_steps=5),
    "FGSM": kr.attacks.FGSM(0.1),
    "Square": kr.attacks.Square(0.1, num_queries=200),
}


@pytest.fixture(scope="module")
def report():
    return kr.evaluate(MODEL, X, Y, ATTACKS, SIZE, transfer_from=other, verbose=0)


def test_figures_agree_with_the_evaluation(report):
    figures = {result.name: result.figures for result in report.checks}
    seen = {row.name: row.correct[:SIZE][CLEAN].mean() for row in report.rows}
    assert CLEAN.sum() == SIZE - 2
    assert 0 < seen["PGD"] < seen["clean"] == 1
    assert figures[MORE_STEPS]["accuracy_after_20_steps"] == seen["PGD"]
    assert figures[MORE_STEPS]["accuracy_after_5_steps"] == seen["PGD-5"]
    assert figures[SINGLE_STEP]["compared_accuracy"] == seen["FGSM"]
    assert figures[SQUARE]["compared_accuracy"] == seen["Square"]
    for name in (NO_WEAKER, SINGLE_STEP, SQUARE, TRANSFER, NOISE):
        assert figures[name]["num_examples"] == CLEAN.sum()
    strongest = min(ATTACKS, key=report.accuracy)
    assert figures[NO_WEAKER]["accuracy"] == seen[strongest]


def test_figures_agree_with_numpy(report):
    figures = {result.name: result.figures for result in report.checks}
    z = outputs(X[:SIZE].astype("float64"))[CLEAN]
    certain = np.exp(-abs(z[:, 0] - z[:, 1])) < 2.0**-24
    assert figures[LOGITS]["share_certain"] == certain.mean()
    assert figures[NOT_ZERO]["share_zero"] == 0

    x_adv = perturbed_images(Classifier(other), X[:SIZE], Y[:SIZE], ATTACKS["PGD"], SIZE, seed=0)
    still_correct = (outputs(x_adv).argmax(axis=1) == Y[:SIZE])[CLEAN]
    assert figures[TRANSFER]["compared_accuracy"] == still_correct.mean()

    still_correct = np.ones(SIZE, bool)
    for draw in range(10):
        delta = np.random.default_rng([0, draw]).standard_normal(X[:SIZE].shape, "float32")
        noisy = np.clip(X[:SIZE] + np.float32(0.1) * np.sign(delta), 0, 1)
        still_correct &= outputs(noisy).argmax(axis=1) == Y[:SIZE]
    assert figures[NOISE]["compared_accuracy"] == still_correct[CLEAN].mean()


def test_the_gradient_of_a_batch_is_sound(report):
    # Each image affects all predictions of its batch.
    result = {result.name: result for result in report.checks}[DIFFERENCES]
    assert result.passed
    assert result.figures["median_relative_error"] < 0.02


def test_every_attack_gets_the_whole_batch(monkeypatch):
    seen = []
    run = kr.attacks.Attack.run_checked

    def recording(attack, classifier, x, y, *args, **kwargs):
        seen.append((x, y))
        return run(attack, classifier, x, y, *args, **kwargs)

    monkeypatch.setattr(kr.attacks.Attack, "run_checked", recording)
    kr.evaluation.check(
        MODEL, X, Y, attack=kr.attacks.MIM(0.1), batch_size=SIZE, num_examples=3, verbose=0
    )
    assert len(seen) >= 6
    for x, y in seen:
        np.testing.assert_array_equal(x, X[:SIZE])
        np.testing.assert_array_equal(y, Y[:SIZE])


def test_check_agrees_with_evaluate(report):
    strongest = min(ATTACKS, key=report.accuracy)
    results = kr.evaluation.check(
        MODEL, X, Y, attack=ATTACKS[strongest], transfer_from=other, batch_size=SIZE, verbose=0
    )
    # The last check uses all examples in `evaluate`, and the first batch in `check`.
    assert [r.figures for r in results[1:-1]] == [r.figures for r in report.checks[1:-1]]
    assert results[0].figures["num_examples"] == CLEAN.sum()


def test_a_batch_without_a_correct_example_cannot_be_checked():
    wrong = 1 - outputs(X[:SIZE]).argmax(axis=1)
    results = kr.evaluation.check(MODEL, X[:SIZE], wrong, attack=ATTACKS["FGSM"], verbose=0)
    assert {result.passed for result in results[:-1]} == {None}
    assert results[-1].passed is False
