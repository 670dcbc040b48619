"""Attacks on a graph-interpolating head, led past its shattered gradient."""

from collections.abc import Mapping
from typing import Any

from keras_robust.attacks import Attack, WNLLSurrogate
from keras_robust.attacks.wnll_surrogate import SURROGATES
from keras_robust.evaluation.attack_list import radii
from keras_robust.layer_access import all_layers


def with_surrogates(model: Any, attacks: Mapping[str, Attack]) -> dict[str, Attack]:
    """The attacks; of those by gradients, for a WNLL head, one more through each surrogate."""
    all_attacks = dict(attacks)
    layers = [model, *all_layers(model)]
    if not any(hasattr(layer, "attacked_as") and layer.phase == "wnll" for layer in layers):
        return all_attacks
    for name, attack in attacks.items():
        config = attack.get_config()
        if not radii(attack) or "objective" not in config or attack.objective is not None:
            continue
        for surrogate in SURROGATES:
            change: dict[str, Any] = {"objective": WNLLSurrogate(surrogate, attack.from_logits)}
            if surrogate == "exact" and config.get("loss") == "ce":
                change["loss"] = "margin"
            all_attacks[f"{name}, {surrogate}"] = type(attack).from_config({**config, **change})
    return all_attacks
