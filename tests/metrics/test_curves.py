"""Curves of robust accuracy over radius and number of steps agree with known values."""

import numpy as np
import pytest

import keras_robust as kr
from keras_robust.evaluation import robustness_curve, steps_curve

pytestmark = pytest.mark.slow_on_jax


class Alternating(kr.attacks.Attack):
    """Fools all examples with an odd number of steps, and none with an even one."""

    def __init__(self, num_steps):
        super().__init__()
        self.num_steps = num_steps

    def get_config(self):
        return {"num_steps": self.num_steps}

    def generate(self, problem, x, start, index, seed):
        return 1 - x if self.num_steps % 2 else x


def test_a_minimum_norm_attack_runs_once_for_all_radii(linear):
    class Counted(type(linear.attack())):
        runs = 0

        def run_checked(self, *args, **kwargs):
            type(self).runs += 1
            return super().run_checked(*args, **kwargs)

    labels = linear.classes.copy()
    labels[:15] = (labels[:15] + 1) % 3
    plain = linear.attack(overshoot=0.02)
    attack = Counted(plain.kernel, plain.bias, overshoot=0.02)
    epsilons = [2.0, 0.0, 0.1, 0.5, 1.0]
    curve = robustness_curve(
        linear.model, linear.x, labels, attack=attack, epsilons=epsilons, verbose=0
    )
    assert list(curve) == sorted(epsilons)
    distances = np.where(labels == linear.classes, 1.02 * linear.distances, 0)
    assert curve == {epsilon: (distances > epsilon).mean() for epsilon in sorted(epsilons)}
    assert Counted.runs == 1


def test_fab_without_a_radius_is_a_minimum_norm_attack(linear):
    attack = kr.attacks.FAB(norm="l2", num_steps=10, bounds=(-10.0, 10.0))
    epsilons = [0.1, 0.3, 1.0]
    curve = robustness_curve(
        linear.model, linear.x, linear.classes, attack=attack, epsilons=epsilons, verbose=0
    )
    # FAB cannot beat the exact distances, and is within 1% of them.
    for epsilon in epsilons:
        assert (linear.distances > epsilon).mean() <= curve[epsilon]
        assert curve[epsilon] <= (1.01 * linear.distances > epsilon).mean()


def test_an_ensemble_is_an_error(threshold, pixels):
    class Both(kr.attacks.Attack):
        attacks = (kr.attacks.FGSM(0.1), kr.attacks.PGD(0.1))

    with pytest.raises(ValueError, match="An ensemble has no radius"):
        robustness_curve(
            threshold(0.5), *pixels, attack=Both(), epsilons=[0.1], norm="linf", verbose=0
        )


def test_images_not_fooled_by_a_minimum_norm_attack_are_robust_at_every_radius(linear):
    curve = robustness_curve(
        linear.model,
        linear.x,
        linear.classes,
        attack=linear.attack(overshoot=-0.5),
        epsilons=[0.0, 1e6],
        verbose=0,
    )
    assert curve == {0.0: 1.0, 1e6: 1.0}


def test_the_norm_of_a_minimum_norm_attack_can_be_chosen(linear):
    attack = linear.attack(overshoot=0.02)
    delta = np.asarray(attack(linear.model, linear.x, linear.classes)) - linear.x
    largest = np.abs(delta).max(axis=1)
    epsilon = float(np.median(largest)) + 1e-4
    curve = robustness_curve(
        linear.model,
        linear.x,
        linear.classes,
        attack=attack,
        epsilons=[epsilon],
        norm="linf",
        verbose=0,
    )
    assert curve == {epsilon: (largest > epsilon).mean()}


def test_bad_norms_and_epsilons(linear, threshold, pixels):
    attack = linear.attack()
    del attack.norm
    for norm in (None, "l7"):
        with pytest.raises(ValueError, match="`norm`"):
            robustness_curve(
                linear.model, linear.x, linear.classes, attack=attack, epsilons=[1.0], norm=norm
            )
    with pytest.raises(ValueError, match="`norm` must be None for an attack that has an `epsilon`"):
        robustness_curve(
            threshold(0.5), *pixels, attack=kr.attacks.FGSM(0.1), epsilons=[1.0], norm="l2"
        )
    with pytest.raises(ValueError, match="`epsilons` must not be empty"):
        robustness_curve(threshold(0.5), *pixels, attack=kr.attacks.FGSM(0.1), epsilons=[])


def test_steps_curve_agrees_with_known_distances(threshold, pixels):
    x, y = pixels
    attack = kr.attacks.PGD(1.0, step_size=0.07, random_start=False)
    curve = steps_curve(
        threshold(0.5), x, y, attack=attack, num_steps=[5, 1, 2], batch_size=16, verbose=0
    )
    distances = np.abs(x.reshape(-1) - 0.5)
    assert list(curve) == [1, 2, 5]
    assert curve == {steps: (distances > 0.07 * steps).mean() for steps in (1, 2, 5)}


def test_steps_curve_may_rise(threshold, pixels):
    x, y = pixels
    wrong = y.copy()
    wrong[:10] = 1
    curve = steps_curve(
        threshold(0.5), x, wrong, attack=Alternating(1), num_steps=[1, 2, 3, 4], verbose=0
    )
    assert curve == {1: 0.0, 2: 0.75, 3: 0.0, 4: 0.75}


def test_curves_keep_the_objective(threshold, pixels):
    x, y = pixels
    # The surrogate leads away from the boundary, so the attack fools no example.
    attack = kr.attacks.PGD(
        0.9, step_size=0.1, random_start=False, objective=lambda model, x, y: -model(x)
    )
    curve = steps_curve(threshold(0.5), x, y, attack=attack, num_steps=[3], verbose=0)
    assert curve == {3: 1.0}
    curve = robustness_curve(threshold(0.5), x, y, attack=attack, epsilons=[0.5], verbose=0)
    assert curve == {0.5: 1.0}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"attack": kr.attacks.FGSM(0.1)}, "must have a `num_steps`"),
        ({"num_steps": []}, "`num_steps` must not be empty"),
        ({"num_steps": [0]}, "`num_steps`"),
        ({"num_steps": [1.5]}, "`num_steps`"),
        ({"attack": kr.attacks.PGD(0.1, targeted=True)}, "untargeted"),
    ],
    ids=str,
)
def test_bad_input(threshold, pixels, arguments, message):
    arguments = {"attack": kr.attacks.PGD(0.1), "num_steps": [1], **arguments}
    with pytest.raises(ValueError, match=message):
        steps_curve(threshold(0.5), *pixels, **arguments, verbose=0)
