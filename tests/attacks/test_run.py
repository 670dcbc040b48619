"""Results of `attack.run`, which returns the original image if an attack fails."""

import numpy as np
import pytest
from keras import ops

import keras_robust as kr
from keras_robust.model.classifier import Classifier

ATTACKS = {
    "fgsm": kr.attacks.FGSM(0.03),
    "pgd": kr.attacks.PGD(0.03, num_steps=5),
    "pgd-l2": kr.attacks.PGD(0.5, num_steps=5, norm="l2"),
    "pgd-restarts": kr.attacks.PGD(0.02, num_steps=3, num_restarts=3),
    "pgd-targeted": kr.attacks.PGD(0.1, num_steps=5, targeted=True),
    "mim": kr.attacks.MIM(0.03, num_steps=5),
    "multi": kr.attacks.MultiTargeted(0.02, num_steps=3),
}


@pytest.mark.slow
@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_result_agrees_with_the_model(trained_model, embedded_data, attack, dtype):
    x, y = (values[:100] for values in embedded_data[1])
    x = x.astype(dtype)
    y = (y + 1) % 10 if attack.targeted else y
    result = attack.run(trained_model, x, y, seed=0)
    predicted = ops.convert_to_numpy(trained_model(result.x_adv)).argmax(1)
    np.testing.assert_array_equal(result.success, (predicted == y) == attack.targeted)
    assert 0.05 < result.success_rate < 0.95
    assert result.x_adv.dtype == x.dtype
    np.testing.assert_array_equal(result.x_adv[~result.success], x[~result.success])
    delta = (result.x_adv.astype("float64") - x).reshape(len(x), -1)
    for norm, order in {"l0": 0, "l1": 1, "l2": 2, "linf": np.inf}.items():
        expected = np.linalg.norm(delta, order, axis=1)
        np.testing.assert_allclose(result.norms[norm], expected, rtol=1e-6)
    again = ops.convert_to_numpy(attack(trained_model, x, y, seed=0))
    np.testing.assert_array_equal(again, result.x_adv)


def test_misclassified_examples_count_as_success_after_a_failed_attack(
    trained_model, embedded_data
):
    # With a radius of almost 0, the attack neither fools the model nor corrects its errors.
    x, y = (values[:200] for values in embedded_data[1])
    wrong = ops.convert_to_numpy(trained_model(x)).argmax(1) != y
    result = kr.attacks.PGD(1e-7, num_steps=1).run(trained_model, x, y, seed=0)
    assert wrong.any()
    np.testing.assert_array_equal(result.success, wrong)


def test_gradients_are_counted_and_fooled_examples_dropped(trained_model, embedded_data):
    x, y = (values[:100] for values in embedded_data[1])
    one = kr.attacks.PGD(0.02, num_steps=5).run(trained_model, x, y, seed=0)
    three = kr.attacks.PGD(0.02, num_steps=5, num_restarts=3).run(trained_model, x, y, seed=0)
    np.testing.assert_array_equal(one.num_gradients, 5)
    np.testing.assert_array_equal(three.num_gradients[one.success], 5)
    np.testing.assert_array_equal(three.num_gradients[~three.success], 15)
    np.testing.assert_array_equal(three.x_adv[one.success], one.x_adv[one.success])
    # One evaluation of the round, and after a failure another one of the original image.
    np.testing.assert_array_equal(one.num_evaluations, np.where(one.success, 1, 2))


def test_later_rounds_only_get_examples_that_are_not_fooled(trained_model, embedded_data):
    x, y = (values[:64] for values in embedded_data[1])
    seen = []

    class Recording(kr.attacks.PGD):
        def improves(self, x, new, new_margin, best, best_margin):
            seen.append(len(x))
            return super().improves(x, new, new_margin, best, best_margin)

    result = Recording(0.02, num_steps=2, num_restarts=3).run(trained_model, x, y, seed=0)
    assert seen[0] == 64
    assert seen[0] > seen[1] >= seen[2] >= (~result.success).sum()


def test_perturb_returns_the_perturbation_of_a_failed_attack(trained_model, embedded_data):
    x, y = (values[:64] for values in embedded_data[1])
    attack = kr.attacks.PGD(0.02, num_steps=3)
    function = Classifier(trained_model).compiled("p", lambda m, x: attack.perturb(m, x, y, 0))
    moved = abs(ops.convert_to_numpy(function(x)) - x).reshape(64, -1).max(1)
    np.testing.assert_allclose(moved, 0.02, atol=1e-6)
    assert (attack.run(trained_model, x, y, seed=0).norms["linf"] == 0).any()


def test_nan_logits_inside_the_ball_are_an_error():
    # Logits are finite at the image and NaN around it, where all comparisons are false.
    def outputs(x):
        z = x[:, 0, 0, 0]
        bad = ops.where(abs(z - 0.5) > 0.01, float("nan"), 0.0)
        return ops.stack([z + bad, -z], axis=1)

    x, y = np.full((4, 2, 2, 1), 0.5, "float32"), np.zeros(4, "int32")
    with pytest.raises(ValueError, match="NaN or infinite"):
        kr.attacks.PGD(0.1, num_steps=2).run(outputs, x, y, seed=0)


def test_ties_do_not_count_as_fooled():
    def constant(x):
        return ops.concatenate([x[:, :1] * 0.0, x[:, :1] * 0.0], axis=1)

    x = np.full((4, 3), 0.5, "float32")
    result = kr.attacks.FGSM(0.1).run(constant, x, np.array([0, 0, 1, 1]))
    assert not result.success.any()
