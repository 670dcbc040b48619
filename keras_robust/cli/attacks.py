"""Attacks made of the command's options."""

import argparse
import inspect
from typing import Any

from keras_robust import attacks

# All attacks by name; those added later are in it.
ATTACKS = {
    name.lower(): value
    for name, value in vars(attacks).items()
    if inspect.isclass(value) and issubclass(value, attacks.Attack) and value is not attacks.Attack
}


# The options that must be of use to an attack, by the argument that they become.
_USED = {"epsilon": "--epsilon", "num_steps": "--num-steps", "version": "--fast"}


def _required(name: str) -> set[str]:
    """The arguments of an attack that have no default."""
    parameters = inspect.signature(ATTACKS[name]).parameters.values()
    return {parameter.name for parameter in parameters if parameter.default is parameter.empty}


# Those that can be made of the command's options.
OFFERED = [name for name in ATTACKS if _required(name) <= {"epsilon"}]


def _arguments(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """The options that were given and that this attack takes, as its arguments."""
    given = {argument: getattr(options, argument) for argument in (*_USED, "norm")}
    parameters = inspect.signature(ATTACKS[name.lower()]).parameters
    return {k: v for k, v in given.items() if v is not None and k in parameters}


def check_attacks(options: argparse.Namespace) -> None:
    """Raises a `ValueError` for attacks that are unknown, or that the options do not fit."""
    unused = {argument for argument in _USED if getattr(options, argument) is not None}
    for name in options.attack:
        if name.lower() not in ATTACKS:
            raise ValueError(f"--attack must be one of {', '.join(OFFERED)}, not {name!r}")
        arguments = _arguments(name, options)
        unused -= set(arguments)
        needed = _required(name.lower()) - set(arguments)
        if "epsilon" in needed:
            raise ValueError(f"--attack {name} needs --epsilon")
        if needed:
            raise ValueError(
                f"--attack {name} needs {', '.join(sorted(needed))}, which the command has no "
                "option for: use keras_robust.evaluate in Python"
            )
        make_attack(name, options, from_logits=True)
    if unused:
        raise ValueError(f"no --attack takes {_USED[min(unused)]}")


def make_attack(name: str, options: argparse.Namespace, from_logits: bool) -> attacks.Attack:
    """An attack with the options that it takes."""
    attack = ATTACKS[name.lower()](
        **_arguments(name, options), bounds=tuple(options.bounds), from_logits=from_logits
    )
    norm = getattr(attack, "norm", None)
    if options.norm not in (None, norm):
        has = "takes no --norm" if norm is None else f"has the norm {norm}, not {options.norm}"
        raise ValueError(f"--attack {name} {has}")
    return attack
