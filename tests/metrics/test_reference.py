"""The reference radius, and accuracies at fractions of it, agree with exact distances."""

import numpy as np
import pytest
from keras import ops

import keras_robust as kr
from keras_robust.evaluation import accuracy_at, reference_epsilon

pytestmark = pytest.mark.slow_on_jax

FGSM = kr.attacks.FGSM(0.1)


@pytest.mark.parametrize(
    ("attack", "error_rate"),
    [
        (FGSM, 0.5),
        (kr.attacks.PGD(0.1, step_size=0.05, num_steps=2, norm="l2", random_start=False), 0.9),
        (kr.attacks.PGD(0.1, step_size=0.05, num_steps=2, norm="l1", random_start=False), 0.5),
    ],
    ids=["FGSM", "PGD", "PGD in L1"],
)
def test_reference_epsilon_is_a_quantile_of_the_distances(threshold, pixels, attack, error_rate):
    x, y = pixels
    distances = np.sort(np.abs(x.reshape(-1).astype("float64") - 0.5))
    exact = distances[int(np.ceil(error_rate * 40)) - 1]
    epsilon = reference_epsilon(
        threshold(0.5), x, y, attack=attack, error_rate=error_rate, tolerance=0.02, verbose=0
    )
    assert exact - 1e-6 <= epsilon <= exact * 1.0201 + 1e-6


def test_misclassified_images_count_as_fooled(threshold, pixels):
    x, y = pixels
    wrong = y.copy()
    wrong[:16] = 1 - wrong[:16]
    distances = np.abs(x.reshape(-1).astype("float64") - 0.5)
    distances[:16] = 0
    epsilon = reference_epsilon(threshold(0.5), x, wrong, attack=FGSM, tolerance=0.02, verbose=0)
    assert epsilon == pytest.approx(np.sort(distances)[19], rel=0.021)
    wrong[:20] = 1 - y[:20]
    assert reference_epsilon(threshold(0.5), x, wrong, attack=FGSM, verbose=0) == 0.0


def test_images_fooled_at_a_smaller_radius_count_as_fooled():
    # Class 1 is a band, so a single step may be too long and jump over it.
    def band(x):
        z = 10 * (0.05 - ops.abs(x[:, 0, 0, 0] - 0.65))
        return ops.stack([-z, z], axis=1)

    x = np.linspace(0.1, 0.5, 41, dtype="float32").reshape(41, 1, 1, 1)
    y = np.zeros(41, "int32")
    assert kr.evaluation.robust_accuracy(band, x, y, attack=kr.attacks.FGSM(0.9)) == 1.0
    attack = kr.attacks.FGSM(0.9)
    epsilon = reference_epsilon(band, x, y, attack=attack, error_rate=0.1, tolerance=0.1, verbose=0)
    assert 0.1 < epsilon < 0.2


def test_accuracy_at_the_reference_radius_is_a_half(trained_model, embedded_data):
    x, y = (values[:100] for values in embedded_data[1])
    epsilon = reference_epsilon(
        trained_model, x, y, attack=FGSM, max_epsilon=0.2, tolerance=0.02, verbose=0
    )
    accuracies = accuracy_at(trained_model, x, y, attack=FGSM, epsilon=epsilon, verbose=0)
    assert list(accuracies) == [0.2, 0.5, 1.0]
    # Images that are only fooled at a smaller radius are not fooled here.
    assert accuracies[1.0] == pytest.approx(0.5, abs=0.04)
    assert accuracies[0.2] > accuracies[0.5] > accuracies[1.0]


def test_accuracies_at_fractions_agree_with_exact_distances(threshold, pixels):
    x, y = pixels
    distances = np.abs(x.reshape(-1) - 0.5)
    accuracies = accuracy_at(
        threshold(0.5), x, y, attack=FGSM, epsilon=0.4, fractions=[1.0, 0.25, 0.0], verbose=0
    )
    assert accuracies == {
        0.0: 1.0,
        0.25: (distances > 0.1).mean(),
        1.0: (distances > 0.4).mean(),
    }


def test_an_attack_that_never_fools_is_an_error(threshold, pixels):
    x, y = pixels
    # The nearest image is 0.0056 from the boundary.
    with pytest.raises(ValueError, match=r"on 0\.0% .* max_epsilon=0\.005"):
        reference_epsilon(threshold(0.5), x, y, attack=FGSM, max_epsilon=0.005, verbose=0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"error_rate": 0.0}, "`error_rate`"),
        ({"error_rate": 1.5}, "`error_rate`.* at most 1"),
        ({"max_epsilon": 0.0}, "`max_epsilon`"),
        ({"tolerance": 0.0}, "`tolerance`"),
        ({"tolerance": float("nan")}, "`tolerance`"),
        ({"attack": kr.attacks.PGD(0.1, targeted=True)}, "untargeted"),
        ({"y": None}, "`y` must be given"),
    ],
    ids=str,
)
def test_bad_input(threshold, pixels, arguments, message):
    arguments = {"x": pixels[0], "y": pixels[1], "attack": FGSM, **arguments}
    with pytest.raises(ValueError, match=message):
        reference_epsilon(threshold(0.5), **arguments, verbose=0)


def test_an_attack_without_epsilon_is_an_error(linear):
    with pytest.raises(ValueError, match="must have an `epsilon`"):
        reference_epsilon(linear.model, linear.x, linear.classes, attack=linear.attack())
