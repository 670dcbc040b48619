"""Attacks on a WNLL head: the published ones, one through each surrogate, and the strongest."""

import dataclasses
from typing import Any

from judging import SOFTMAX, WNLL, objective

import keras_robust as kr

# Number of queries and of template points in an attacked batch.
BATCH = 500


@dataclasses.dataclass(frozen=True)
class Attacked:
    """The paper's settings for a data set: adversarial training by PGD, and the attacks."""

    network: str
    epsilon: float
    training_step: float
    training_steps: int
    step: float
    num_steps: tuple[int, int]
    carlini_steps: int
    carlini_rate: float


ATTACKED = {
    "mnist": Attacked("Small-CNN", 0.3, 0.01, 40, 0.01, (40, 100), 100, 0.003),
    "cifar10_jpeg": Attacked("ResNet-20", 8 / 255, 2 / 255, 10, 1 / 255, (20, 100), 50, 0.006),
}


def published_attacks(setting: Attacked, output: str) -> dict[str, kr.attacks.Attack]:
    """Returns the paper's FGSM and IFGSM.

    On WNLL, they pass the gradient of the loss at WNLL's output to the linear branch.
    """
    given: dict[str, Any] = {"objective": objective(output)}
    attacks: dict[str, kr.attacks.Attack] = {"FGSM": kr.attacks.FGSM(setting.epsilon, **given)}
    for number in setting.num_steps:
        attacks[f"IFGSM-{number}"] = kr.attacks.IFGSM(
            setting.epsilon, step_size=setting.step, num_steps=number, **given
        )
    return attacks


def carlini(
    output: str, num_steps: int, learning_rate: float, surrogate: str = "linear"
) -> kr.attacks.Attack:
    """Returns the papers' C&W, with a single constant and few steps.

    On WNLL, the papers attack the logits of the linear branch. `surrogate` replaces them.
    """
    return kr.attacks.CarliniWagnerL2(
        initial_const=10.0, binary_search_steps=1, num_steps=num_steps,
        learning_rate=learning_rate, objective=objective(output, surrogate),
    )  # fmt: skip


def published_carlini(setting: Attacked, output: str) -> kr.attacks.Attack:
    """Returns C&W with the settings of a data set."""
    return carlini(output, setting.carlini_steps, setting.carlini_rate)


def strongest_attacks(
    epsilon: float, output: str, num_queries: int
) -> dict[str, kr.attacks.Attack]:
    """Returns PGD on two losses, through every surrogate of a WNLL head, and Square."""
    every = ("straight_through", "linear", "exact", "soft_neighbors")
    attacks: dict[str, kr.attacks.Attack] = {
        f"PGD, {loss}, {surrogate}": kr.attacks.PGD(
            epsilon, num_steps=50, loss=loss, objective=objective(output, surrogate)
        )
        for surrogate in (every if output == WNLL else every[:1])
        for loss in ("ce", "margin")
    }
    return {**attacks, "Square": kr.attacks.Square(epsilon, num_queries=num_queries)}


def by_surrogate(epsilon: float, output: str) -> dict[str, kr.attacks.Attack]:
    """Returns PGD-20 through each surrogate, and Square.

    The published attack comes first. On softmax, PGD-20 has two losses instead of surrogates.
    """

    def pgd(loss: str, surrogate: str | None = None) -> kr.attacks.Attack:
        through = objective(output, surrogate) if surrogate else None
        return kr.attacks.PGD(epsilon, num_steps=20, loss=loss, objective=through)

    square = {"Square": kr.attacks.Square(epsilon, num_queries=500)}
    if output == SOFTMAX:
        return {"PGD": pgd("ce"), "PGD, margin": pgd("margin"), **square}
    return {
        "straight-through (published)": pgd("ce", "straight_through"),
        "linear branch transferred": pgd("ce", "linear"),
        "exact, cross-entropy": pgd("ce", "exact"),
        "exact, margin": pgd("margin", "exact"),
        "soft neighbours": pgd("margin", "soft_neighbors"),
        **square,
    }
