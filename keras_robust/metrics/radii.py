"""The radii of the attacks that measure robustness."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from keras_robust.attacks import Attack


def check_attack(attack: Any) -> Attack:
    """Returns the attack if it is untargeted. Raises a `ValueError` otherwise."""
    if not isinstance(attack, Attack) or attack.targeted:
        raise ValueError(
            "Robust accuracy needs an untargeted `keras_robust.attacks.Attack`. "
            f"Received: {attack!r}"
        )
    return attack


def radii(attack: Any) -> dict[str, float]:
    """Returns the largest radius that an attack may use in each norm.

    The mapping is empty if the attack has no limit.
    """
    if "epsilon" in attack.given:
        return {getattr(attack, "norm", "linf"): radius(attack)}
    members = [radii(member) for member in getattr(attack, "attacks", ())]
    return union(members) if members and all(members) else {}


def radius(attack: Attack) -> float:
    """Returns an attack's `epsilon`, or the largest one if each value has its own."""
    return float(np.max(attack.data["epsilon"]))


def with_radius(attack: Attack, new: float) -> Attack:
    """Returns the attack at another radius.

    A given step size and the radii of individual values are scaled by the same factor.
    """
    old = radius(attack)
    is_scaled = np.ndim(attack.data["epsilon"]) > 0 and old > 0
    changes = {"epsilon": attack.data["epsilon"] * new / old if is_scaled else new}
    if attack.arguments.get("step_size") is not None and old > 0:
        changes["step_size"] = attack.data["step_size"] * new / old
    return attack.replace(**changes)


def union(all_radii: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Returns the largest radius in each norm."""
    largest: dict[str, float] = {}
    for each in all_radii:
        for norm, radius in each.items():
            largest[norm] = max(radius, largest.get(norm, radius))
    return largest
