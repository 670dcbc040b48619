"""Adds robustness curves and the geometry of features to a report."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np

from keras_robust.attacks import Attack
from keras_robust.attacks.journal import Arrays
from keras_robust.evaluation.attacked_batches import attacked_batches
from keras_robust.evaluation.progress import Progress
from keras_robust.metrics.accuracy import attack_in_batches
from keras_robust.metrics.activations import features
from keras_robust.metrics.analysis import require_scikit_learn
from keras_robust.metrics.geometry import feature_geometry
from keras_robust.metrics.radii import radius, with_radius
from keras_robust.model.classifier import Classifier
from keras_robust.model.images import LazyImages
from keras_robust.model.smoothed import SmoothedClassifier
from keras_robust.report.report import Report
from keras_robust.report.row import CLEAN

_MULTIPLES = (0.25, 0.5, 1, 2, 4)
_NUM_STEPS = (1, 2, 5, 10, 20, 50)
_NUM_POINTS, _FEWEST_POINTS = 400, 4


def check_pictures(classifier: Classifier, x: np.ndarray | LazyImages) -> None:
    """Raises the errors of `add_pictures` before any work is done."""
    if _has_features(classifier):
        require_scikit_learn()
        features(classifier, x[:1])


def add_pictures(
    report: Report,
    classifier: Classifier,
    x: np.ndarray | LazyImages,
    labels: np.ndarray,
    attacks: Mapping[str, Attack],
    progress: Progress,
    verbose: int,
    mask: np.ndarray | None = None,
) -> None:
    """Adds figures for the strongest attack with an `epsilon`.

    Attacks with a number of steps are preferred, if there are any. The figures are the accuracy
    against epsilon, from 0 to 4 times the attack's own epsilon; the accuracy against the number of
    steps, if the attack has one; and, if the model is made of layers, the principal components of
    the features of up to 400 correctly classified images. Attacks that found no gradient are
    excluded, because they cannot be run.
    """
    names = [name for name, attack in attacks.items() if "epsilon" in attack.given]
    names = [name for name in names if not report.row(name).without_gradient]
    if not names:
        return
    with_steps = [name for name in names if "num_steps" in attacks[name].arguments]
    name = min(with_steps or names, key=report.accuracy)
    attack, clean = attacks[name], report.row(CLEAN).correct
    run = functools.partial(attacked_batches, progress=progress, verbose=verbose)

    def still_robust(changed: Attack, remaining: np.ndarray, point: str) -> np.ndarray:
        if verbose:
            print(f"Running {name} on {remaining.sum()} of {len(x)} examples (curve: {point})")
        robust = remaining.copy()
        file = f"curve-{point.replace(' ', '-')}"
        batches = attack_in_batches(
            classifier, x, labels, changed, remaining, report.batch_size, report.seed, mask=mask
        )
        costs = changed.round_costs(classifier.num_classes)
        for batch, found in run(batches, costs, file=file, keep=_only("success")):
            robust[batch] = ~found["success"]
        return robust

    def over_epsilon() -> Arrays:
        robust, accuracies = clean, {0.0: float(clean.mean())}
        for multiple in _MULTIPLES if radius(attack) > 0 else ():
            epsilon = multiple * radius(attack)
            # An example fooled within one ball is fooled within every larger ball.
            robust = still_robust(with_radius(attack, epsilon), robust, f"epsilon {epsilon:.6g}")
            accuracies[epsilon] = float(robust.mean())
        return _arrays(accuracies)

    def over_steps() -> Arrays:
        robust = {
            count: still_robust(attack.replace(num_steps=count), clean, f"steps {count}")
            for count in _NUM_STEPS
        }
        return _arrays({count: float(each.mean()) for count, each in robust.items()})

    curves: dict[str, Callable[[], Arrays]] = {"epsilon": over_epsilon}
    if name in with_steps:
        curves["steps"] = over_steps
    for axis, compute in curves.items():
        points = progress.arrays(f"curve-{axis}", compute)
        pairs = zip(points["x"].tolist(), points["accuracy"].tolist(), strict=True)
        report.curves[axis] = {name: dict(pairs)}

    chosen = np.flatnonzero(clean)[:_NUM_POINTS]
    if _has_features(classifier) and len(chosen) >= _FEWEST_POINTS:
        x, labels, size = x[chosen], labels[chosen], min(report.batch_size, len(chosen))
        mask = None if mask is None else mask[chosen]
        x_adv, every_example = x.copy(), np.ones(len(chosen), bool)
        if verbose:
            print(f"Running {name} on {len(chosen)} examples (geometry of features)")
        batches = attack_in_batches(
            classifier, x, labels, attack, every_example, size, report.seed, mask=mask
        )
        costs, keep = attack.round_costs(classifier.num_classes), _only("success", "x_adv")
        for batch, found in run(batches, costs, file="geometry", keep=keep):
            x_adv[batch] = found["x_adv"].view(x.dtype)  # NumPy files store bfloat16 as bytes.
        report.geometry = feature_geometry(classifier, x, labels, x_adv, batch_size=size)


def _has_features(classifier: Classifier) -> bool:
    """Returns whether the features of the model can be observed.

    Each layer of a smoothed classifier runs once per vote, so its features are ambiguous.
    """
    model = classifier.model
    return isinstance(model, keras.Model) and not isinstance(model, SmoothedClassifier)


def _only(*names: str) -> Callable[[Arrays], Arrays]:
    return lambda found: {name: found[name] for name in names}


def _arrays(curve: Mapping[Any, float]) -> Arrays:
    return {"x": np.array(list(curve)), "accuracy": np.array(list(curve.values()))}
