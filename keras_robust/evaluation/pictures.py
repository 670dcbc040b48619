"""Curves and the geometry of features, added to a report."""

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from keras_robust.attacks import Attack
from keras_robust.evaluation.progress import Arrays, Progress
from keras_robust.metrics.accuracy import attack_standing
from keras_robust.metrics.activations import features
from keras_robust.metrics.analysis import require_scikit_learn
from keras_robust.metrics.curves import robustness_curve
from keras_robust.metrics.geometry import feature_geometry
from keras_robust.metrics.steps_curve import steps_curve
from keras_robust.model.classifier import Classifier
from keras_robust.report.report import Report

_MULTIPLES = (0, 0.25, 0.5, 1, 2, 4)
_NUM_STEPS = (1, 2, 5, 10, 20, 50)
_NUM_POINTS, _FEWEST_POINTS = 400, 4


def check_pictures(classifier: Classifier, x: np.ndarray) -> None:
    """Raises, before any work, what `add_pictures` would raise after it."""
    if isinstance(classifier.model, keras.Model):
        require_scikit_learn()
        features(classifier, x[:1])


def add_pictures(
    report: Report,
    classifier: Classifier,
    x: np.ndarray,
    labels: np.ndarray,
    attacks: Mapping[str, Attack],
    progress: Progress,
    verbose: int,
) -> None:
    """Adds what the strongest attack with an `epsilon`, and steps if one has them, shows.

    The accuracy over epsilon, from 0 to 4 times its own; over the number of steps, if it has one;
    and the principal components of the features of images that are classified correctly, if the
    model is made of layers. Attacks that have found no gradient cannot be run again for it.
    """
    arguments = {name: attack.arguments for name, attack in attacks.items()}
    names = [n for n, known in arguments.items() if "epsilon" in known]
    names = [name for name in names if not report.row(name).without_gradient]
    if not names:
        return
    with_steps = [name for name in names if "num_steps" in arguments[name]]
    name = min(with_steps or names, key=report.accuracy)
    attack: Any = attacks[name]
    options: dict[str, Any] = {
        "attack": attack,
        "batch_size": report.batch_size,
        "seed": report.seed,
        "verbose": verbose,
    }

    def over_epsilon() -> Arrays:
        epsilons = [multiple * attack.epsilon for multiple in _MULTIPLES]
        return _arrays(robustness_curve(classifier, x, labels, epsilons=epsilons, **options))

    def over_steps() -> Arrays:
        return _arrays(steps_curve(classifier, x, labels, num_steps=_NUM_STEPS, **options))

    curves = {"epsilon": over_epsilon}
    if name in with_steps:
        curves["steps"] = over_steps
    for axis, compute in curves.items():
        if verbose:
            print(f"{name} over {axis}")
        points = progress.arrays(f"curve-{axis}", compute)
        pairs = zip(points["x"].tolist(), points["accuracy"].tolist(), strict=True)
        report.curves[axis] = {name: dict(pairs)}

    chosen = np.flatnonzero(report.row("clean").correct)[:_NUM_POINTS]
    if isinstance(classifier.model, keras.Model) and len(chosen) >= _FEWEST_POINTS:
        x, labels, size = x[chosen], labels[chosen], min(report.batch_size, len(chosen))
        standing = np.ones(len(chosen), bool)
        x_adv, _ = attack_standing(
            classifier, x, labels, labels, attack, standing, size, report.seed
        )
        report.geometry = feature_geometry(classifier, x, labels, x_adv, batch_size=size)


def _arrays(curve: Mapping[Any, float]) -> Arrays:
    return {"x": np.array(list(curve)), "accuracy": np.array(list(curve.values()))}
