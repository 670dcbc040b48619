"""Curves and the geometry of features in a report."""

import keras
import numpy as np
import pytest
from keras import ops

import keras_robust as kr

pytestmark = pytest.mark.slow_on_jax

X = np.linspace(0, 1, 40, dtype="float32").reshape(40, 1, 1, 1)
Y = (X[:, 0, 0, 0] > 0.5).astype("int32")
DISTANCE = abs(X[:, 0, 0, 0] - 0.5)


def threshold(x):
    """Predicts class 1 if the only pixel is greater than 0.5."""
    z = 10 * (x[:, 0, 0, 0] - 0.5)
    return ops.stack([-z, z], axis=1)


def evaluate(model, attacks, **options):
    options = {"checks": False, "pictures": True, "verbose": 0, **options}
    return kr.evaluate(model, X, Y, attacks, **options)


def test_curves_of_the_strongest_attack_with_steps():
    attacks = {
        "weak": kr.attacks.PGD(0.01),
        "PGD": kr.attacks.PGD(0.1, step_size=0.02, num_steps=3, random_start=False),
        "FGSM": kr.attacks.FGSM(0.3),
    }
    report = evaluate(threshold, attacks)
    epsilons = [0.0, 0.025, 0.05, 0.1, 0.2, 0.4]
    assert list(report.curves) == ["epsilon", "steps"]
    # Three steps of a fifth of the radius.
    assert report.curves["epsilon"] == {
        "PGD": pytest.approx({e: (0.6 * e < DISTANCE).mean() for e in epsilons})
    }
    assert report.curves["steps"] == {
        "PGD": {n: (min(0.02 * n, 0.1) < DISTANCE).mean() for n in (1, 2, 5, 10, 20, 50)}
    }
    assert report.geometry is None  # A function has no layers.


def test_attacks_without_steps_or_radius():
    report = evaluate(threshold, {"FGSM": kr.attacks.FGSM(0.1)})
    assert list(report.curves) == ["epsilon"]
    assert report.curves["epsilon"]["FGSM"][0.4] == (DISTANCE > 0.4).mean()
    report = evaluate(threshold, {"noise": kr.attacks.GaussianNoise(0.1)})
    assert report.curves == {}


def test_geometry_and_resuming(tmp_path):
    model = keras.Sequential(
        [keras.Input((1, 1, 1)), keras.layers.Flatten(), keras.layers.Dense(3, activation="tanh")]
    )
    classifier = keras.Sequential([*model.layers, keras.layers.Dense(2)])
    classifier.build((None, 1, 1, 1))
    kernel = np.array([[-1, 1], [-1, 1], [-1, 1]], "float32")
    ones, offset = np.ones((1, 3), "float32"), np.full(3, -0.5, "float32")
    classifier.set_weights([ones, offset, kernel, np.zeros(2, "float32")])
    options = {"attacks": [kr.attacks.FGSM(0.2)], "output": tmp_path}

    report = evaluate(classifier, pictures=False, **options)
    assert report.geometry is None
    report = evaluate(classifier, resume=True, **options)
    assert len(report.geometry.clean) == 40
    np.testing.assert_array_equal(report.geometry.labels, Y)
    np.testing.assert_array_equal(report.geometry.clean_classes, Y)
    fooled = report.geometry.attacked_classes != Y
    np.testing.assert_array_equal(fooled, DISTANCE < 0.2)
    for name in ("geometry.png", "curves_epsilon.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")

    (tmp_path / "progress" / "curve-epsilon.npz").rename(tmp_path / "progress" / "other.npz")
    np.savez(tmp_path / "progress" / "curve-epsilon.npz", x=[0.0, 1.0], accuracy=[1.0, 0.5])
    again = evaluate(classifier, resume=True, **options)
    assert list(again.curves["epsilon"].values()) == [{0.0: 1.0, 1.0: 0.5}]


def test_a_missing_package_is_an_error_before_any_work(monkeypatch):
    def missing():
        raise ImportError("scikit-learn is missing")

    monkeypatch.setattr("keras_robust.evaluation.pictures.require_scikit_learn", missing)
    model = keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(2)])

    class Never(kr.attacks.FGSM):
        def run_checked(self, *args, **kwargs):
            raise AssertionError

    with pytest.raises(ImportError, match="missing"):
        evaluate(model, [Never(0.1)])
