"""Curves and the geometry of features, added to a report."""

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
from keras_robust.model.images import Images
from keras_robust.model.smoothed import SmoothedClassifier
from keras_robust.report.report import Report
from keras_robust.report.row import CLEAN

_MULTIPLES = (0.25, 0.5, 1, 2, 4)
_NUM_STEPS = (1, 2, 5, 10, 20, 50)
_NUM_POINTS, _FEWEST_POINTS = 400, 4


def check_pictures(classifier: Classifier, x: np.ndarray | Images) -> None:
    """Raises, before any work, what `add_pictures` would raise after it."""
    if _has_features(classifier):
        require_scikit_learn()
        features(classifier, x[:1])


def add_pictures(
    report: Report,
    classifier: Classifier,
    x: np.ndarray | Images,
    labels: np.ndarray,
    attacks: Mapping[str, Attack],
    progress: Progress,
    verbose: int,
    mask: np.ndarray | None = None,
) -> None:
    """Adds what the strongest attack with an `epsilon`, and steps if one has them, shows.

    The accuracy over epsilon, from 0 to 4 times its own; over the number of steps, if it has one;
    and the principal components of the features of images that are classified correctly, if the
    model is made of layers. Attacks that have found no gradient cannot be run again for it.
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
            print(f"{name} for the curve over {point} on {remaining.sum()} of {len(x)} examples")
        left = remaining.copy()
        file = f"curve-{point.replace(' ', '-')}"
        batches = attack_in_batches(
            classifier, x, labels, changed, remaining, report.batch_size, report.seed, mask=mask
        )
        costs = changed.round_costs(classifier.num_classes)
        for batch, found in run(batches, costs, file=file, keep=_only("success")):
            left[batch] = ~found["success"]
        return left

    def over_epsilon() -> Arrays:
        left, accuracies = clean, {0.0: float(clean.mean())}
        for multiple in _MULTIPLES if radius(attack) > 0 else ():
            epsilon = multiple * radius(attack)
            # What is fooled in one ball is fooled in every larger one.
            left = still_robust(with_radius(attack, epsilon), left, f"epsilon {epsilon:.6g}")
            accuracies[epsilon] = float(left.mean())
        return _arrays(accuracies)

    def over_steps() -> Arrays:
        left = {
            count: still_robust(attack.replace(num_steps=count), clean, f"steps {count}")
            for count in _NUM_STEPS
        }
        return _arrays({count: float(remaining.mean()) for count, remaining in left.items()})

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
        x_adv, all_of_them = x.copy(), np.ones(len(chosen), bool)
        if verbose:
            print(f"{name} for the geometry of features on {len(chosen)} examples")
        batches = attack_in_batches(
            classifier, x, labels, attack, all_of_them, size, report.seed, mask=mask
        )
        costs, keep = attack.round_costs(classifier.num_classes), _only("success", "x_adv")
        for batch, found in run(batches, costs, file="geometry", keep=keep):
            x_adv[batch] = found["x_adv"].view(x.dtype)  # Files know bfloat16 as bytes.
        report.geometry = feature_geometry(classifier, x, labels, x_adv, batch_size=size)


def _has_features(classifier: Classifier) -> bool:
    """Whether a call of the model is one of its layers; the layers of one that votes run often."""
    model = classifier.model
    return isinstance(model, keras.Model) and not isinstance(model, SmoothedClassifier)


def _only(*names: str) -> Callable[[Arrays], Arrays]:
    return lambda found: {name: found[name] for name in names}


def _arrays(curve: Mapping[Any, float]) -> Arrays:
    return {"x": np.array(list(curve)), "accuracy": np.array(list(curve.values()))}
