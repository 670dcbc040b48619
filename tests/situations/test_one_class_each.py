"""Models and labels without one class per example are an error in every function."""

import inspect
import re

import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_robust as kr
from keras_robust.cli import main
from keras_robust.model.classifier import Classifier

RNG = np.random.default_rng(0)
X = RNG.random((12, 4, 4, 1), "float32")
CLASSES = np.arange(12) % 3
SENTENCE = (
    "Each example must have one class: multi-label, regression and segmentation models are not "
    "supported."
)


def dense(num_outputs, activation=None):
    return lambda: keras.Sequential(
        [keras.Input((4, 4, 1)), layers.Flatten(), layers.Dense(num_outputs, activation)]
    )


def segmentation_model():
    return keras.Sequential([keras.Input((4, 4, 1)), layers.Conv2D(3, 1)])


MULTI_HOT = np.array([[1, 1, 0], [0, 1, 1], [0, 0, 0]])[CLASSES]
# Each kind is a model, labels, and `from_logits`.
KINDS = {
    "multi-label": (dense(3, "sigmoid"), MULTI_HOT, False),
    "multi-label, floats": (dense(3), MULTI_HOT.astype("float32"), True),
    "regression": (dense(1), RNG.normal(size=12).astype("float32"), True),
    "regression, column": (dense(1), RNG.normal(size=(12, 1)), True),
    "regression of several": (dense(3), RNG.normal(size=(12, 3)), True),
    "segmentation": (segmentation_model, RNG.integers(0, 3, (12, 4, 4)), True),
    "segmentation, one-hot": (segmentation_model, RNG.random((12, 4, 4, 3), "float32"), True),
    "images as labels": (dense(3), X, True),
}
# Kinds with valid labels, where only the outputs of the model are wrong.
OUTPUTS_ONLY = {
    "segmentation, labels of images": (segmentation_model, CLASSES, True),
    "counts": (dense(1), CLASSES, True),
}


def attack(from_logits):
    return kr.attacks.FGSM(0.1, from_logits=from_logits)


def compiled(model, loss):
    robust = kr.RobustModel(model)
    robust.compile("sgd", loss)
    return robust


def fit_with_callback(model, y, attack):
    model.compile("sgd", "mse")
    callback = kr.callbacks.RobustAccuracy(attack, X, y)
    model.fit(X, np.zeros((12, *model.output_shape[1:])), callbacks=[callback], verbose=0)


def robust_fit(make_loss):
    return lambda m, y, a: compiled(m, make_loss(a)).fit(X, y, verbose=0)


LOSSES = {
    "AdversarialTraining": kr.losses.AdversarialTraining,
    "TRADES": lambda a: kr.losses.TRADES(kr.attacks.PGD(0.1, from_logits=a.from_logits)),
    "MART": kr.losses.MART,
    "LatentDisparity": kr.losses.LatentDisparity,
    "StabilityTraining": lambda a: kr.losses.StabilityTraining(1.0, 0.1, a.from_logits),
    "DeepDefense": lambda a: kr.losses.DeepDefense(from_logits=a.from_logits),
    "Sum": lambda a: 0.5 * kr.losses.AdversarialTraining(a),
}
EVALUATION = {
    "check": lambda m, y, a: kr.evaluation.check(m, X, y, attack=a, verbose=0),
    "evaluate": lambda m, y, a: kr.evaluate(m, X, y, a, verbose=0),
    "robust_accuracy": lambda m, y, a: kr.evaluation.robust_accuracy(m, X, y, attack=a),
    "robustness_curve": lambda m, y, a: kr.evaluation.robustness_curve(
        m, X, y, attack=a, epsilons=[0.1], verbose=0
    ),
    "steps_curve": lambda m, y, a: kr.evaluation.steps_curve(
        m, X, y, attack=kr.attacks.PGD(0.1, from_logits=a.from_logits), num_steps=[1], verbose=0
    ),
    "accuracy_at": lambda m, y, a: kr.evaluation.accuracy_at(
        m, X, y, attack=a, epsilon=0.1, verbose=0
    ),
    "reference_epsilon": lambda m, y, a: kr.evaluation.reference_epsilon(
        m, X, y, attack=a, verbose=0
    ),
    "noise_accuracy": lambda m, y, a: kr.evaluation.noise_accuracy(
        m, X, y, stddevs=[0.1], verbose=0
    ),
    "rho": lambda m, y, a: kr.evaluation.rho(m, X, y, attack=a, verbose=0),
    "transfer_matrix": lambda m, y, a: kr.evaluation.transfer_matrix(
        {"model": m}, X, y, attack=a, verbose=0
    ),
    "certify": lambda m, y, a: kr.evaluation.certify(
        m, X, y, stddev=0.1, num_samples=10, num_selection=10, verbose=0
    ),
    "k_fold": lambda m, y, a: kr.evaluation.k_fold(lambda *data: m, X, y, num_folds=2, verbose=0),
    "feature_geometry": lambda m, y, a: kr.evaluation.feature_geometry(m, X, y, X),
    "nearest_images": lambda m, y, a: kr.evaluation.nearest_images(m, X, X, y, k=2),
}
ENTRIES = {
    "call": lambda m, y, a: a(m, X, y),
    "run": lambda m, y, a: a.run(m, X, y),
    "perturb": lambda m, y, a: a.perturb(m, X, y, 0),
    **{f"fit with {name}": robust_fit(loss) for name, loss in LOSSES.items()},
    "train_on_batch": lambda m, y, a: compiled(m, LOSSES["AdversarialTraining"](a)).train_on_batch(
        X, y
    ),
    "RobustAccuracy": fit_with_callback,
    **EVALUATION,
}


def test_no_function_is_missing():
    functions = inspect.getmembers(kr.evaluation, inspect.isfunction)
    takes_labels = {
        n for n, f in functions if {"y", "y_train"} & set(inspect.signature(f).parameters)
    }
    assert (takes_labels | {"evaluate"}) - {"noisy_logits"} == set(EVALUATION)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("entry", ENTRIES)
def test_bad_labels_are_an_error_in_every_function(entry, kind):
    make, y, from_logits = KINDS[kind]
    with pytest.raises(ValueError, match=re.escape(SENTENCE)):
        ENTRIES[entry](make(), y, attack(from_logits))


@pytest.mark.parametrize("kind", OUTPUTS_ONLY)
@pytest.mark.parametrize("entry", ["run", "fit with AdversarialTraining", "evaluate", "rho"])
def test_bad_outputs_are_an_error(entry, kind):
    make, y, from_logits = OUTPUTS_ONLY[kind]
    with pytest.raises(ValueError, match=re.escape(SENTENCE)):
        ENTRIES[entry](make(), y, attack(from_logits))


@pytest.mark.parametrize("kind", [*KINDS, *OUTPUTS_ONLY])
def test_the_command_has_the_same_error(kind, monkeypatch, tmp_path, capsys):
    make, y, from_logits = {**KINDS, **OUTPUTS_ONLY}[kind]
    data = kr.datasets.ArrayDataset(X, y)
    monkeypatch.setattr("keras_robust.cli.data.load", lambda *args: data)
    path = str(tmp_path / "model.keras")
    make().save(path)
    argv = ["evaluate", path, "--dataset", "d", "--attack", "fgsm", "--epsilon", "0.1"]
    assert main(argv + ([] if from_logits else ["--from-probabilities"])) == 2
    assert capsys.readouterr().err.count(SENTENCE) == 1


def test_segmentation_is_an_error_in_a_compiled_function():
    # Compiled functions do not know the values of the labels.
    robust = compiled(segmentation_model(), kr.losses.FisherInformation())
    with pytest.raises(ValueError, match=re.escape(SENTENCE)):
        robust.fit(X, CLASSES, verbose=0)

    def perturb(model, x, y):
        return attack(True).perturb(model, x, y, 0)

    images, classes = ops.convert_to_tensor(X), ops.convert_to_tensor(CLASSES)
    for model, y in ((dense(3)(), images), (segmentation_model(), classes)):
        with pytest.raises(ValueError, match=re.escape(SENTENCE)):
            Classifier(model).compiled("perturb", perturb)(images, y)
