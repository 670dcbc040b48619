"""Accuracies under attack, and in the worst case of several."""

from typing import Any

import numpy as np
from data import Split

import keras_robust as kr

# Outputs of a network.
SOFTMAX, WNLL = "softmax", "WNLL"


def objective(output: str, surrogate: str = "straight_through") -> Any:
    """The objective of attacks on an output: for WNLL a surrogate, by default the published one."""
    return kr.attacks.WNLLSurrogate(surrogate) if output == WNLL else None


def first(split: Split, count: int) -> Split:
    return split[0][:count], split[1][:count]


def accuracies(
    model: Any, split: Split, attacks: dict[str, kr.attacks.Attack], batch_size: int = 500
) -> dict[str, float]:
    """Accuracy on clean images, under each attack, and in the worst case of all."""
    batch_size = min(batch_size, len(split[0]))
    report = kr.evaluate(model, *split, attacks, checks=False, batch_size=batch_size, verbose=0)
    return {row.name: row.accuracy for row in report.rows}


def within(
    model: Any,
    split: Split,
    attack: kr.attacks.Attack,
    norm: str = "linf",
    epsilon: float = np.inf,
    batch_size: int = 500,
) -> float:
    """Accuracy under an attack that looks for a small perturbation: those up to `epsilon` count."""
    stands = correct(model, split, batch_size)
    for begin in range(0, len(stands), batch_size):
        rows = slice(begin, begin + batch_size)
        result = attack.run(model, split[0][rows], split[1][rows], seed=begin)
        stands[rows] &= ~(result.success & (result.norms[norm] <= epsilon * (1 + 1e-5)))
    return float(stands.mean())


def correct(model: Any, split: Split, batch_size: int = 500) -> np.ndarray:
    """Which images are classified correctly."""
    outputs = model.predict(split[0], batch_size=min(batch_size, len(split[0])), verbose=0)
    return np.asarray(outputs).argmax(axis=1) == split[1]


def accuracy(model: Any, split: Split, batch_size: int = 500) -> float:
    return float(correct(model, split, batch_size).mean())


def auto_attack(epsilon: float, scale: str) -> dict[str, kr.attacks.Attack]:
    """AutoAttack, in the version that the scale allows."""
    version = "fast" if scale == "small" else "standard"
    return {f"AutoAttack, {version}": kr.attacks.AutoAttack(epsilon, version=version)}


def strongest(epsilon: float, scale: str, num_queries: int = 1000) -> dict[str, kr.attacks.Attack]:
    """AutoAttack, and two attacks like its parts."""
    targets: dict[str, Any] = {"num_targets": 3, "target_order": "distance"}
    return {
        **auto_attack(epsilon, scale),
        "APGD, margin": kr.attacks.APGD(epsilon, loss="margin_targeted", **targets),
        "Square": kr.attacks.Square(epsilon, num_queries=num_queries),
    }
