"""Checks whether attacks with the gradient are at least as strong as attacks without it."""

from typing import Any

import numpy as np

from keras_robust.attacks import PGD, Square
from keras_robust.attacks.result import perturbation_norms
from keras_robust.evaluation.checks.case import NUM_STEPS, Case
from keras_robust.evaluation.checks.outcome import Outcome, compared
from keras_robust.metrics.perturbed import perturbed_images

# Far too few for Square to match PGD on a sound model, but enough to beat PGD if the gradient is
# useless.
NUM_QUERIES = 200
# PGD is compared with the best of this many draws.
NUM_DRAWS = 10
_PGD = f"PGD with {NUM_STEPS} steps"


def square(case: Case) -> Outcome:
    """Checks that PGD is no weaker than Square."""
    if case.classifier.returns_classes:
        return Outcome(None, "Square needs class scores, but the model returns only classes.")
    attack = Square(case.ball, norm=case.norm, num_queries=NUM_QUERIES, **_setting(case))
    name = f"Square with {NUM_QUERIES} queries"
    return compared(_PGD, case.robust(case.pgd()), name, case.robust(attack))


def transfer(case: Case) -> Outcome:
    """Checks that PGD is no weaker than PGD on another model, with that model's own gradient."""
    if case.transfer_from is None:
        return Outcome(None, "No other model was given as `transfer_from`.")
    attack = PGD(case.ball, num_steps=NUM_STEPS, norm=case.norm, loss=case.loss, **_setting(case))
    x_adv = perturbed_images(
        case.transfer_from, case.x, case.y, attack, case.batch_size, case.seed, mask=case.mask
    )
    robust = case.still_correct(x_adv)
    return compared(_PGD, case.robust(case.pgd()), "PGD on the other model", robust)


def noise(case: Case) -> Outcome:
    """Checks that PGD is no weaker than the best of several draws of noise of the same norm."""
    robust = np.ones(len(case.examples), bool)
    for draw in range(NUM_DRAWS):
        rng = np.random.default_rng([case.seed, draw])
        delta = rng.standard_normal(case.x.shape, "float32")
        if case.mask is not None:
            delta *= case.mask
        if case.norm == "linf":
            delta = np.sign(delta)
        else:
            length = perturbation_norms(np.zeros_like(delta), delta)[case.norm]
            length = length.reshape(-1, *[1] * (delta.ndim - 1)).astype("float32")
            delta /= np.maximum(length, 1e-30)
        noisy = np.clip(case.x + case.ball * delta, *case.attack.bounds).astype(case.x.dtype)
        robust &= case.still_correct(noisy)
    name = f"the best of {NUM_DRAWS} draws of random noise"
    return compared(_PGD, case.robust(case.pgd()), name, robust)


def _setting(case: Case) -> dict[str, Any]:
    """Returns the settings without the `objective`, which is specific to the judged model."""
    return {name: value for name, value in case.setting.items() if name != "objective"}
