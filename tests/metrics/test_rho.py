"""The relative size of perturbations agrees with the closed form of a linear model."""

import warnings

import numpy as np
import pytest

import keras_robust as kr
from keras_robust.evaluation import rho

pytestmark = pytest.mark.slow_on_jax


@pytest.mark.parametrize("overshoot", [0.02, 0.5])
@pytest.mark.parametrize("batch_size", [7, 1000])
def test_rho_agrees_with_the_closed_form(linear, overshoot, batch_size):
    attack = linear.attack(overshoot=overshoot)
    expected = (1 + overshoot) * linear.distances / np.linalg.norm(linear.x, axis=1)
    result = rho(linear.model, linear.x, attack=attack, batch_size=batch_size, verbose=0)
    assert result == pytest.approx(expected.mean(), rel=1e-5)


@pytest.mark.slow
def test_rho_by_fab_is_near_the_closed_form(linear):
    attack = kr.attacks.FAB(norm="l2", num_steps=10, bounds=(-10.0, 10.0))
    expected = (linear.distances / np.linalg.norm(linear.x, axis=1)).mean()
    result = rho(linear.model, linear.x, attack=attack, verbose=0)
    assert expected <= result <= 1.01 * expected


def test_other_norms(linear):
    attack = linear.attack(overshoot=0.02)
    # Recomputed from the adversarial images in double precision.
    delta = np.asarray(attack(linear.model, linear.x, linear.classes), "float64") - linear.x
    for norm, order in (("l1", 1), ("l2", 2), ("linf", np.inf)):
        ratios = np.linalg.norm(delta, order, axis=1) / np.linalg.norm(linear.x, order, axis=1)
        result = rho(linear.model, linear.x, norm=norm, attack=attack, verbose=0)
        assert result == pytest.approx(ratios.mean(), rel=1e-5)


def test_the_mean_is_only_subtracted_in_the_denominator(linear):
    attack = linear.attack(overshoot=0.02)
    mean = np.array([0.3, -0.2, 0.1, 0.0, 2.0])
    expected = 1.02 * linear.distances / np.linalg.norm(linear.x - mean, axis=1)
    result = rho(linear.model, linear.x, attack=attack, mean=mean, verbose=0)
    assert result == pytest.approx(expected.mean(), rel=1e-5)


def test_with_true_labels_a_misclassified_image_counts_as_0(linear):
    attack = linear.attack(overshoot=0.02)

    class Lazy(type(attack)):
        """Does not change misclassified images, like minimum-norm attacks."""

        def generate(self, problem, x, start, index, seed):
            x_adv = super().generate(problem, x, start, index, seed)
            fooled = problem.margin(x)[:, None] > 0
            return kr.attacks.attack.ops.where(fooled, x, x_adv)

    labels = linear.classes.copy()
    labels[:20] = (labels[:20] + 1) % 3
    ratios = 1.02 * linear.distances / np.linalg.norm(linear.x, axis=1)
    ratios[:20] = 0
    lazy = Lazy(attack.kernel, attack.bias, 0.02)
    result = rho(linear.model, linear.x, labels, attack=lazy, verbose=0)
    assert result == pytest.approx(ratios.mean(), rel=1e-5)


def test_failures_cause_a_warning_and_their_perturbations_count(linear):
    # Half of the distance to the boundary fools no example.
    attack = linear.attack(overshoot=-0.5)
    expected = 0.5 * linear.distances / np.linalg.norm(linear.x, axis=1)
    with pytest.warns(UserWarning, match="failed on 60 of 60 images"):
        result = rho(linear.model, linear.x, attack=attack, verbose=0)
    assert result == pytest.approx(expected.mean(), rel=1e-5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rho(linear.model, linear.x, attack=linear.attack(overshoot=0.02), verbose=0)


def test_lengths_are_at_least_a_tenth_of_the_mean_length(linear):
    x, (kernel, bias) = linear.x.copy(), linear.model.get_weights()
    x[:3] = np.array([0.0, 0.001, 0.1])[:, None]
    sizes = np.linalg.norm(x, axis=1)
    assert (sizes < 0.1 * sizes.mean()).sum() == 2
    sizes = np.maximum(sizes, 0.1 * sizes.mean())
    scores = x.astype("float64") @ kernel + bias
    gaps = scores.max(axis=1, keepdims=True) - scores
    lengths = np.linalg.norm(kernel[:, scores.argmax(axis=1)].T[:, :, None] - kernel, axis=1)
    distances = np.where(gaps > 0, gaps / np.maximum(lengths, 1e-9), np.inf).min(axis=1)
    with pytest.warns(UserWarning, match="2 of 60 images are nearly equal to `mean`"):
        result = rho(linear.model, x, attack=linear.attack(overshoot=0.02), verbose=0)
    assert result == pytest.approx(1.02 * (distances / sizes).mean(), rel=1e-4)


def test_data_sets_of_images(trained_model):
    data = kr.datasets.load("fashion_mnist_subset", "test").take(20)
    x, _ = kr.model.arrays.as_arrays(data)
    attack = kr.attacks.PGD(5.0, norm="l2", num_steps=10)
    results = [
        rho(trained_model, images, attack=attack, verbose=0) for images in (x, data.batch(8))
    ]
    assert results[0] == results[1] > 0


@pytest.mark.parametrize("more", [(), ("linf",)])
def test_the_former_order_of_arguments_is_an_error(linear, more):
    with pytest.raises(ValueError, match=r"rho\(model, x, y=None, norm='l2', \*, attack=...\)"):
        rho(linear.model, linear.x, linear.attack(), *more, verbose=0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"norm": "l0"}, "`norm`"),
        ({"attack": "DeepFool"}, "untargeted"),
        ({"attack": None}, "untargeted"),
        ({"x": np.zeros((0, 5), "float32")}, "at least one example"),
        ({"x": np.full((2, 5), 20.0, "float32")}, "inside the attack's `bounds`"),
        ({"x": np.zeros((3, 5), "float32")}, "3 images with a norm of 0"),
        ({"x": np.ones((3, 5), "float32"), "mean": 1.0}, "less `mean`"),
        ({"y": np.array([0, 1])}, "same number of examples"),
        ({"batch_size": 0}, "`batch_size`"),
    ],
    ids=str,
)
def test_bad_input(linear, arguments, message):
    arguments = {"x": linear.x, "attack": linear.attack(), **arguments}
    with pytest.raises(ValueError, match=message):
        rho(linear.model, **arguments, verbose=0)
