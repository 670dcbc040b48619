"""The attacks that robustness is measured by, and their radii."""

from collections.abc import Mapping, Sequence
from typing import Any

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
        return {getattr(attack, "norm", "linf"): float(attack.data["epsilon"])}
    members = [radii(member) for member in getattr(attack, "attacks", ())]
    return union(members) if members and all(members) else {}


def union(all_radii: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The largest radius in each norm."""
    largest: dict[str, float] = {}
    for each in all_radii:
        for norm, radius in each.items():
            largest[norm] = max(radius, largest.get(norm, radius))
    return largest
