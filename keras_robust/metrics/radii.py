"""The attacks that robustness is measured by, and their radii."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from keras_robust.attacks import Attack


def check_attack(attack: Any) -> Attack:
    """An untargeted attack."""
    if not isinstance(attack, Attack) or attack.targeted:
        raise ValueError(
            "Robust accuracy needs an untargeted `keras_robust.attacks.Attack`. "
            f"Received: {attack!r}"
        )
    return attack


def radii(attack: Any) -> dict[str, float]:
    """The largest radius that an attack may use in each norm; empty where there is no limit."""
    if "epsilon" in attack.given:
        return {getattr(attack, "norm", "linf"): radius(attack)}
    members = [radii(member) for member in getattr(attack, "attacks", ())]
    return union(members) if members and all(members) else {}


def radius(attack: Attack) -> float:
    """Its `epsilon`, or the largest of them where each value has its own."""
    return float(np.max(attack.data["epsilon"]))


def with_radius(attack: Attack, new: float) -> Attack:
    """The attack at another radius; a step size, and the radii of values, are scaled with it."""
    old = radius(attack)
    is_scaled = np.ndim(attack.data["epsilon"]) > 0 and old > 0
    changes = {"epsilon": attack.data["epsilon"] * new / old if is_scaled else new}
    if attack.arguments.get("step_size") is not None and old > 0:
        changes["step_size"] = attack.data["step_size"] * new / old
    return attack.replace(**changes)


def union(all_radii: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The largest radius in each norm."""
    largest: dict[str, float] = {}
    for each in all_radii:
        for norm, radius in each.items():
            largest[norm] = max(radius, largest.get(norm, radius))
    return largest
