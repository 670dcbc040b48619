"""Accuracies under single attacks, and in the worst case over several."""

from typing import Any

import numpy as np
from data import Split

import keras_robust as kr

# The two kinds of output that are compared.
SOFTMAX, WNLL = "softmax", "WNLL"


def objective(output: str, surrogate: str = "straight_through") -> Any:
    """Returns the `objective` of attacks on an output: a surrogate for WNLL, `None` for softmax.

    The default surrogate is that of the published attacks.
    """
    return kr.attacks.WNLLSurrogate(surrogate) if output == WNLL else None


def first(split: Split, count: int) -> Split:
    """Returns the first `count` images and labels."""
    return split[0][:count], split[1][:count]


def accuracies(
    model: Any, split: Split, attacks: dict[str, kr.attacks.Attack], batch_size: int = 500
) -> dict[str, float]:
    """Returns the clean accuracy, the accuracy under each attack, and the worst case over all.

    The keys are `"clean"`, the names of the attacks, and `"worst case"`.
    """
    found = robust_images(model, split, attacks, batch_size)
    return {name: float(is_robust.mean()) for name, is_robust in found.items()}


def robust_images(
    model: Any, split: Split, attacks: dict[str, kr.attacks.Attack], batch_size: int = 500
) -> dict[str, np.ndarray]:
    """Returns, under the keys of `accuracies`, which images are classified correctly."""
    batch_size = min(batch_size, len(split[0]))
    report = kr.evaluate(model, *split, attacks, checks=False, batch_size=batch_size, verbose=0)
    return {row.name: row.correct for row in report.rows}


def robust_within(
    model: Any,
    split: Split,
    attack: kr.attacks.Attack,
    norm: str = "linf",
    epsilon: float = np.inf,
    batch_size: int = 500,
) -> np.ndarray:
    """Returns which images an attack that minimises the perturbation does not fool.

    Only perturbations of a norm of at most `epsilon` count.
    """
    is_robust = correct(model, split, batch_size)
    for begin in range(0, len(is_robust), batch_size):
        rows = slice(begin, begin + batch_size)
        result = attack.run(model, split[0][rows], split[1][rows], seed=begin)
        is_robust[rows] &= ~(result.success & (result.norms[norm] <= epsilon * (1 + 1e-5)))
    return is_robust


def correct(model: Any, split: Split, batch_size: int = 500) -> np.ndarray:
    """Returns a bool array: whether each image is classified correctly."""
    outputs = model.predict(split[0], batch_size=min(batch_size, len(split[0])), verbose=0)
    return np.asarray(outputs).argmax(axis=1) == split[1]


def accuracy(model: Any, split: Split, batch_size: int = 500) -> float:
    """Returns the fraction of images that are classified correctly."""
    return float(correct(model, split, batch_size).mean())


def auto_attack(epsilon: float, scale: str) -> dict[str, kr.attacks.Attack]:
    """Returns AutoAttack: `fast` at small scale, `standard` at the paper's."""
    version = "fast" if scale == "small" else "standard"
    return {f"AutoAttack, {version}": kr.attacks.AutoAttack(epsilon, version=version)}


def strongest(epsilon: float, scale: str, num_queries: int = 1000) -> dict[str, kr.attacks.Attack]:
    """Returns AutoAttack, APGD on margins of 3 target classes, and Square."""
    targets: dict[str, Any] = {"num_targets": 3, "target_order": "distance"}
    return {
        **auto_attack(epsilon, scale),
        "APGD, margin": kr.attacks.APGD(epsilon, loss="margin_targeted", **targets),
        "Square": kr.attacks.Square(epsilon, num_queries=num_queries),
    }
