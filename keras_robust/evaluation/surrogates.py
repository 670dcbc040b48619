"""Adds attacks through the surrogate gradients of a graph-interpolating head."""

from collections.abc import Mapping
from typing import Any

from keras_robust.attacks import Attack, Ensemble, WNLLSurrogate
from keras_robust.attacks.wnll_surrogate import SURROGATES
from keras_robust.metrics.radii import radii
from keras_robust.model.classifier import Classifier
from keras_robust.model.layers import HasSurrogate


def with_surrogates(classifier: Classifier, attacks: Mapping[str, Attack]) -> dict[str, Attack]:
    """Returns the attacks and, for a WNLL head, a copy of each through each surrogate gradient.

    The exact gradient of a WNLL head is shattered. Only gradient-based attacks with a radius and
    without an `objective` are copied.
    """
    all_attacks = dict(attacks)
    heads = [layer for layer in classifier.layers if isinstance(layer, HasSurrogate)]
    if not any(getattr(head, "phase", "wnll") == "wnll" for head in heads):
        return all_attacks
    for name, attack in attacks.items():
        for surrogate in SURROGATES if radii(attack) else ():
            through = _with_surrogate(surrogate, attack)
            if through is not attack:
                all_attacks[f"{name}, {surrogate}"] = through
    return all_attacks


def _with_surrogate(surrogate: str, attack: Attack) -> Attack:
    """Returns the attack with the surrogate as its `objective`.

    Returns the attack unchanged if it takes no `objective` or already has one.
    """
    if "objective" not in attack.arguments:
        members = getattr(attack, "attacks", [])
        changed = [_with_surrogate(surrogate, member) for member in members]
        is_same = all(a is b for a, b in zip(changed, members, strict=True))
        return attack if is_same else Ensemble(changed)
    if attack.objective is not None:
        return attack
    change: dict[str, Any] = {"objective": WNLLSurrogate(surrogate, attack.from_logits)}
    # The cross-entropy of the exact outputs saturates.
    if surrogate == "exact" and getattr(attack, "loss", None) == "ce":
        change["loss"] = "margin"
    return attack.replace(**change)
