"""An attack of each public class, for the tests that every attack must pass."""

import keras

import keras_robust as kr

PGD = kr.attacks.PGD(0.1, num_steps=2)


@keras.saving.register_keras_serializable(package="attack_table")
def smooth(x):
    return keras.ops.tanh(x)


COMMON = {
    "bounds": (-1.0, 2.0),
    "from_logits": False,
    "objective": kr.attacks.BPDA("a", backward=smooth),
    "num_samples": 2,
}

# At least one object of each public class with few steps, if possible with no argument at its
# default. A new attack adds a line.
ATTACKS = [
    kr.attacks.FGSM(0.1, norm="l2", targeted=True, loss="margin", **COMMON),
    kr.attacks.IFGSM(0.1, step_size=0.03, num_steps=3, targeted=True, loss="dlr", **COMMON),
    kr.attacks.PGD(
        0.1, step_size=0.03, num_steps=3, norm="l2", num_restarts=2, targeted=True,
        loss="margin", **COMMON,
    ),
    kr.attacks.PGD(0.1, random_start=False),
    kr.attacks.MIM(
        0.1, step_size=0.03, num_steps=3, decay=0.5, norm="l2", targeted=True, loss="margin",
        **COMMON,
    ),
    kr.attacks.MultiTargeted(
        0.1, step_size=0.03, num_steps=3, norm="l2", random_start=False, num_targets=2, **COMMON
    ),
    kr.attacks.APGD(
        0.1, norm="l2", loss="dlr", num_steps=3, num_restarts=2, num_targets=2, rho=0.5,
        targeted=True, target_order="distance", **COMMON,
    ),
    kr.attacks.APGD(0.1, random_start=False),
    kr.attacks.FAB(
        0.1, norm="l2", num_steps=3, num_restarts=2, num_targets=2, alpha_max=0.2, eta=1.1,
        beta=0.8, **COMMON,
    ),
    kr.attacks.Square(
        0.1, norm="l2", num_queries=30, initial_fraction=0.5, num_restarts=2, targeted=True,
        bounds=(-1.0, 2.0), from_logits=False, num_samples=2,
    ),
    kr.attacks.HopSkipJump(
        0.1, norm="linf", num_queries=30, targeted=True, bounds=(-1.0, 2.0), from_logits=False,
        num_samples=2,
    ),
    kr.attacks.Ensemble([kr.attacks.Ensemble([PGD]), kr.attacks.FGSM(0.1, norm="l2")]),
    kr.attacks.AutoAttack(
        0.1, norm="l2", version="rand", bounds=(-1.0, 2.0), from_logits=False,
        objective=COMMON["objective"],
    ),
    kr.attacks.GaussianNoise(0.1, bounds=(-1.0, 2.0), from_logits=False, num_samples=2),
    kr.attacks.DeepFool(norm="linf", num_steps=3, overshoot=0.1, num_candidates=3, **COMMON),
    kr.attacks.CarliniWagnerL2(
        confidence=1.0, learning_rate=0.1, num_steps=3, initial_const=2.0,
        binary_search_steps=2, targeted=True, **COMMON,
    ),
    kr.attacks.BPDA(["a", "b"], backward=smooth, from_logits=False),
]  # fmt: skip
