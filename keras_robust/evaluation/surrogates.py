"""Attacks on a graph-interpolating head, led past its shattered gradient."""

from collections.abc import Mapping
from typing import Any

from keras_robust.attacks import Attack, Ensemble, WNLLSurrogate
from keras_robust.attacks.wnll_surrogate import SURROGATES
from keras_robust.evaluation.attack_list import radii
from keras_robust.model.patching import all_layers


def with_surrogates(model: Any, attacks: Mapping[str, Attack]) -> dict[str, Attack]:
    """The attacks; of those by gradients, for a WNLL head, one more through each surrogate."""
    all_attacks = dict(attacks)
    layers = [model, *all_layers(model)]
    if not any(hasattr(layer, "attacked_as") and layer.phase == "wnll" for layer in layers):
        return all_attacks
    for name, attack in attacks.items():
        for surrogate in SURROGATES if radii(attack) else ():
            through = _through(surrogate, attack)
            if through is not attack:
                all_attacks[f"{name}, {surrogate}"] = through
    return all_attacks


def _through(surrogate: str, attack: Attack) -> Attack:
    """The attack with the surrogate as its objective; itself where it takes or has none."""
    config = attack.get_config()
    if "objective" not in config:
        members = getattr(attack, "attacks", [])
        changed = [_through(surrogate, member) for member in members]
        is_same = all(a is b for a, b in zip(changed, members, strict=True))
        return attack if is_same else Ensemble(changed)
    if attack.objective is not None:
        return attack
    change: dict[str, Any] = {"objective": WNLLSurrogate(surrogate, attack.from_logits)}
    if surrogate == "exact" and config.get("loss") == "ce":
        change["loss"] = "margin"
    return type(attack).from_config({**config, **change})
