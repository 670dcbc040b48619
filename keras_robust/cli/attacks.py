"""Creation of attacks from the command's options."""

import argparse
import inspect
from typing import Any

from keras_robust import attacks

# All attacks by their names in lower case.
ATTACKS = {
    name.lower(): value
    for name, value in vars(attacks).items()
    if inspect.isclass(value) and issubclass(value, attacks.Attack) and value is not attacks.Attack
}

# Options that at least one attack must accept, by the attack's argument.
_ATTACK_OPTIONS = {"epsilon": "--epsilon", "num_steps": "--num-steps", "version": "--fast"}


def _required(name: str) -> set[str]:
    """Returns the arguments of an attack that have no default."""
    parameters = inspect.signature(ATTACKS[name]).parameters.values()
    return {parameter.name for parameter in parameters if parameter.default is parameter.empty}


# Attacks that can be created from the command's options.
OFFERED = [name for name in ATTACKS if _required(name) <= {"epsilon"}]


def _arguments(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Returns the given options that an attack accepts, as its arguments."""
    given = {argument: getattr(options, argument) for argument in (*_ATTACK_OPTIONS, "norm")}
    parameters = inspect.signature(ATTACKS[name.lower()]).parameters
    return {k: v for k, v in given.items() if v is not None and k in parameters}


def check_attacks(options: argparse.Namespace) -> None:
    """Raises a `ValueError` if an attack is unknown or does not fit the options."""
    unused = {argument for argument in _ATTACK_OPTIONS if getattr(options, argument) is not None}
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
                f"--attack {name} needs {', '.join(sorted(needed))}, for which the command has no "
                "option: use keras_robust.evaluate in Python"
            )
        make_attack(name, options, from_logits=True)
    if unused:
        raise ValueError(f"no --attack takes {_ATTACK_OPTIONS[min(unused)]}")


def make_attack(name: str, options: argparse.Namespace, from_logits: bool) -> attacks.Attack:
    """Returns an attack with the options that it accepts."""
    attack = ATTACKS[name.lower()](
        **_arguments(name, options), bounds=tuple(options.bounds), from_logits=from_logits
    )
    norm = getattr(attack, "norm", None)
    if options.norm not in (None, norm):
        has = "takes no --norm" if norm is None else f"has the norm {norm}, not {options.norm}"
        raise ValueError(f"--attack {name} {has}")
    return attack
