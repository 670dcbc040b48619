"""An implausible radius or step size causes a warning that suggests another value."""

import warnings

import keras
import numpy as np
import pytest

import keras_robust as kr

X, Y = np.full((4, 4, 4, 3), 0.5, "float32"), np.arange(4) % 2
GREY_LEVELS = {"bounds": (0.0, 255.0)}


def classifier():
    return keras.Sequential([keras.Input((4, 4, 3)), keras.layers.Flatten(), keras.layers.Dense(3)])


def messages(make):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        # A warning of Keras, which requests 64 bits from JAX.
        warnings.filterwarnings("ignore", "Explicitly requested dtype .?int64")
        make()
    return [str(warning.message) for warning in caught if warning.category is UserWarning]


LARGE = {
    "FGSM": lambda: kr.attacks.FGSM(8),
    "IFGSM": lambda: kr.attacks.IFGSM(8),
    "PGD": lambda: kr.attacks.PGD(epsilon=8),
    "MIM": lambda: kr.attacks.MIM(8),
    "MultiTargeted": lambda: kr.attacks.MultiTargeted(8),
    "APGD": lambda: kr.attacks.APGD(8),
    "FAB": lambda: kr.attacks.FAB(8),
    "Square": lambda: kr.attacks.Square(8),
    "AutoAttack": lambda: kr.attacks.AutoAttack(8),
}


@pytest.mark.parametrize("make", LARGE.values(), ids=LARGE)
def test_a_radius_in_grey_levels_for_images_from_0_to_1(make):
    (message,) = messages(make)
    assert "`epsilon=8` is larger than any difference within `bounds=(0.0, 1.0)`" in message
    assert "pass `epsilon=0.0314`" in message


def test_the_warning_depends_on_the_bounds():
    (message,) = messages(lambda: kr.attacks.PGD(8, bounds=(-1.0, 1.0)))
    assert "pass `epsilon=0.0627`" in message
    assert not messages(lambda: kr.attacks.PGD(8, bounds=(0, 255)))


def test_a_stddev_in_grey_levels():
    (message,) = messages(lambda: kr.attacks.GaussianNoise(16))
    assert "`stddev=16`" in message
    assert "pass `stddev=0.0627`" in message


@pytest.mark.parametrize("make", [kr.attacks.PGD, kr.attacks.MIM, kr.attacks.MultiTargeted])
def test_the_number_of_steps_as_step_size(make):
    (message,) = messages(lambda: make(0.03, 10))
    assert "`step_size=10` is larger than the diameter of the ball, 2 * epsilon = 0.06" in message
    assert "`num_steps`" in message


def test_a_radius_for_images_from_0_to_1_with_bounds_in_grey_levels():
    for make in (
        lambda: kr.attacks.PGD(8 / 255, **GREY_LEVELS),
        lambda: kr.attacks.AutoAttack(8 / 255, norm="l2", **GREY_LEVELS),
    ):
        (message,) = messages(make)
        assert "less than a thousandth of the range" in message
        assert "pass `epsilon=8`" in message
    assert not messages(lambda: kr.attacks.PGD(0.5, **GREY_LEVELS))


@pytest.mark.slow_on_jax
def test_a_large_l2_radius_causes_a_warning_when_the_shape_is_known():
    # The largest L2 distance of two images of 48 values in [0, 1] is the root of 48, 6.9.
    attack = kr.attacks.PGD(7.0, num_steps=1, norm="l2")
    (message,) = messages(lambda: attack.run(classifier(), X, Y, seed=0))
    assert "`epsilon=7`" in message
    assert "6.93" in message
    evaluated = messages(lambda: kr.evaluate(classifier(), X, Y, [attack], checks=False, verbose=0))
    assert evaluated == [message]
    attack = attack.replace(epsilon=6.9)
    assert not messages(lambda: attack.run(classifier(), X, Y, seed=0))


def test_a_large_l1_radius_causes_a_warning_when_the_shape_is_known():
    # The largest L1 distance of two images of 48 values in [0, 1] is 48.
    attack = kr.attacks.PGD(50.0, num_steps=1, norm="l1")
    (message,) = messages(lambda: attack.run(classifier(), X, Y, seed=0))
    assert "`epsilon=50`" in message
    assert "within `bounds=(0.0, 1.0)`, which is at most 48." in message
    attack = attack.replace(epsilon=48.0)
    assert not messages(lambda: attack.run(classifier(), X, Y, seed=0))


def test_the_warning_is_located_where_the_attack_is_made():
    for make in (lambda: kr.attacks.PGD(8), lambda: kr.attacks.FGSM(8)):
        with pytest.warns(UserWarning, match="epsilon=8") as caught:
            make()
        assert [warning.filename for warning in caught] == [__file__]


def test_plausible_values_cause_no_warning():
    for make in (
        lambda: kr.attacks.PGD(1.0),  # A ball that contains all images.
        lambda: kr.attacks.PGD(0.0, step_size=0.01),
        lambda: kr.attacks.PGD(0.1, step_size=0.2),
        lambda: kr.attacks.PGD(1e-7),
        lambda: kr.attacks.PGD(5.0, norm="l2"),
        lambda: kr.attacks.AutoAttack(12.0, norm="l1"),
        lambda: kr.attacks.GaussianNoise(1.0),
        lambda: kr.attacks.FAB(),
        lambda: kr.attacks.DeepFool(),
        lambda: kr.attacks.CarliniWagnerL2(),
        lambda: kr.attacks.AutoAttack(1e-4, bounds=(-2.1, 2.6)),
        lambda: kr.attacks.PGD(16, num_steps=3, **GREY_LEVELS),
    ):
        assert not messages(make)


def test_schedules_and_variables():
    schedule = keras.optimizers.schedules.PolynomialDecay(0.0, 10, 0.1)
    variable = keras.Variable(8.0)

    def run():
        kr.attacks.PGD(schedule, step_size=schedule)
        attack = kr.attacks.PGD(variable, num_steps=1)
        attack.run(classifier(), X, Y, seed=0)

    (message,) = messages(run)
    assert "`epsilon=8`" in message
    variable.assign(0.1)
    assert not messages(run)


def test_in_training():
    model = kr.RobustModel(classifier())
    loss = kr.losses.AdversarialTraining(kr.attacks.PGD(7.0, num_steps=1, norm="l2"))
    model.compile("sgd", loss)
    (message,) = messages(lambda: model.fit(X, Y, verbose=0))
    assert "`epsilon=7`" in message
