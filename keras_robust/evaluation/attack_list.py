"""Names and validates the attacks of an evaluation."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from keras_robust.attacks import Attack
from keras_robust.metrics.radii import check_attack
from keras_robust.report.row import CERTIFIED, CLEAN, WORST_CASE

# Names omit these arguments, because all attacks on a model share them.
_OMITTED = ("bounds", "data_format", "from_logits")


def named_attacks(attacks: Any) -> dict[str, Attack]:
    """Returns validated attacks by name, from a mapping, a list, or a single attack."""
    if isinstance(attacks, Attack):
        attacks = [attacks]
    if isinstance(attacks, Sequence) and not isinstance(attacks, str | bytes):
        attacks = _with_names([check_attack(attack) for attack in attacks])
    if not isinstance(attacks, Mapping) or not attacks:
        raise ValueError(
            "Argument `attacks` must be a mapping of names to attacks, a list of attacks, or a "
            f"single attack, with at least one attack. Received: attacks={attacks!r}"
        )
    for name, attack in attacks.items():
        if not isinstance(name, str) or name in (CLEAN, CERTIFIED, WORST_CASE):
            raise ValueError(
                f"The names in argument `attacks` must be strings other than {CLEAN!r}, "
                f"{CERTIFIED!r} and {WORST_CASE!r}, which the report reserves. Received: {name!r}"
            )
        check_attack(attack)
    return dict(attacks)


def _with_names(attacks: Sequence[Attack]) -> dict[str, Attack]:
    """Names attacks after their class and the arguments that differ from their defaults.

    Attacks with equal names are numbered: `"PGD(epsilon=0.1) #2"`.
    """
    named: dict[str, Attack] = {}
    for attack in attacks:
        name = base = _name(attack)
        number = 1
        while name in named:
            number += 1
            name = f"{base} #{number}"
        named[name] = attack
    return named


def _name(attack: Attack) -> str:
    arguments = []
    for name, parameter in inspect.signature(type(attack)).parameters.items():
        value = getattr(attack, name)
        if isinstance(value, float):
            value = float(f"{value:.4g}")
        is_default = np.array_equal(value, parameter.default)
        if not is_default and name not in _OMITTED:
            arguments.append(f"{name}={_short_repr(value)}")
    return f"{type(attack).__name__}({', '.join(arguments)})"


def _short_repr(value: Any) -> str:
    if isinstance(value, Attack):
        return _name(value)
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_short_repr, value))}]"
    if isinstance(value, np.ndarray):
        return f"array of shape {value.shape}"
    return getattr(value, "__name__", str(value))
