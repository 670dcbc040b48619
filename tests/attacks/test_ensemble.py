"""Ensembles return the worst case of their attacks, and skip examples that are fooled."""

import keras
import numpy as np
import pytest
from keras import ops

import keras_robust as kr
from keras_robust import backend
from keras_robust.model.classifier import Classifier

pytestmark = pytest.mark.slow_on_jax

EPSILON = 0.3


def linear_model(num_classes=4, seed=0):
    rng = np.random.default_rng(seed)
    model = keras.Sequential(
        [keras.Input((4, 4, 1)), keras.layers.Flatten(), keras.layers.Dense(num_classes)]
    )
    model.set_weights([rng.normal(size=(16, num_classes)), 0.1 * rng.normal(size=num_classes)])
    return model


@pytest.fixture(scope="module")
def problem():
    """Returns a model, images, and the model's predictions as labels."""
    model = linear_model()
    x = np.random.default_rng(1).random((60, 4, 4, 1), "float32")
    return model, x, ops.convert_to_numpy(model(x)).argmax(1)


# Deterministic attacks, which find the same alone and in an ensemble.
MEMBERS = [
    kr.attacks.FGSM(0.05),
    kr.attacks.FGSM(0.4, norm="l2"),
    kr.attacks.MIM(0.07, num_steps=3),
    kr.attacks.PGD(0.09, num_steps=5, random_start=False, loss="margin"),
]


def test_run_returns_the_worst_case(problem):
    model, x, y = problem
    results = [attack.run(model, x, y) for attack in MEMBERS]
    assert len({result.success.sum() for result in results}) == len(MEMBERS)
    assert 0 < results[0].success.sum() < results[-1].success.sum() < len(x)
    result = kr.attacks.Ensemble(MEMBERS).run(model, x, y, seed=0)

    success = np.array([result.success for result in results])
    np.testing.assert_array_equal(result.success, success.any(axis=0))
    first = success.argmax(axis=0)
    for i in range(len(x)):
        expected = results[first[i]].x_adv[i] if success[:, i].any() else x[i]
        np.testing.assert_array_equal(result.x_adv[i], expected)
        seen = first[i] + 1 if success[:, i].any() else len(MEMBERS)
        for name in ("num_gradients", "num_evaluations"):
            cost = sum(getattr(member, name)[i] for member in results[:seen])
            assert getattr(result, name)[i] == cost
        np.testing.assert_allclose(
            result.norms["l1"][i], abs(expected.astype("float64") - x[i]).sum(), rtol=1e-6
        )


def test_call_returns_the_images_of_run(problem):
    model, x, y = problem
    attack = kr.attacks.Ensemble(MEMBERS)
    expected = attack.run(model, x, y).x_adv
    np.testing.assert_array_equal(ops.convert_to_numpy(attack(model, x, y)), expected)
    function = Classifier(model).compiled("call", lambda m, *args: attack(m, *args))
    traced = ops.convert_to_numpy(function(x, y, backend.make_seed(0)))
    np.testing.assert_allclose(traced, expected, atol=1e-6)


def test_perturb_takes_the_largest_margin_until_the_model_is_fooled(problem):
    model, x, y = problem

    def perturbed(attack):
        function = Classifier(model).compiled(attack.key, lambda m, *args: attack.perturb(m, *args))
        return ops.convert_to_numpy(function(x, y, backend.make_seed(0)))

    images = np.array([perturbed(attack) for attack in MEMBERS])
    rows = np.arange(len(x))
    margins = []
    for each in images:
        logits = ops.convert_to_numpy(model(each))
        own = logits[rows, y]
        logits = logits.copy()
        logits[rows, y] = -np.inf
        margins.append(logits.max(1) - own)
    margins = np.array(margins)
    expected = []
    for i in rows:
        fooling = np.flatnonzero(margins[:, i] > 0)
        expected.append(images[fooling[0] if len(fooling) else margins[:, i].argmax(), i])
    np.testing.assert_allclose(perturbed(kr.attacks.Ensemble(MEMBERS)), expected, atol=1e-6)


def test_each_attack_has_its_own_seed(problem):
    model, x, _ = problem
    y = ops.convert_to_numpy(model(x)).argmin(1)
    noise = kr.attacks.GaussianNoise(0.3)
    alone = noise.run(model, x, y, seed=backend.fold_in(backend.make_seed(5), 0)).x_adv
    together = kr.attacks.Ensemble([noise, noise])
    results = [together.run(model, x, y, seed=seed).x_adv for seed in (5, 5, 6)]
    np.testing.assert_array_equal(results[0], alone)
    np.testing.assert_array_equal(results[0], results[1])
    assert (results[0] != results[2]).mean() > 0.5

    correct = ops.convert_to_numpy(model(x)).argmax(1)
    success = [
        kr.attacks.Ensemble([kr.attacks.GaussianNoise(0.1)] * number)
        .run(model, x, correct, seed=5)
        .success.sum()
        for number in (1, 8)
    ]
    assert success[1] > success[0]


def test_targeted(problem):
    model, x, y = problem
    target = (y + 1) % 4
    members = [kr.attacks.PGD(epsilon, num_steps=5, targeted=True) for epsilon in (0.02, 0.5)]
    attack = kr.attacks.Ensemble(members)
    assert attack.targeted
    result = attack.run(model, x, target, seed=0)
    np.testing.assert_array_equal(
        result.success, ops.convert_to_numpy(model(result.x_adv)).argmax(1) == target
    )
    assert result.success.mean() > 0.8


def test_smallest_perturbations_are_not_compared(problem):
    # The first attack that fools the model counts, although the second finds nearer images.
    model, x, y = problem
    far, near = kr.attacks.FGSM(0.08), kr.attacks.FAB(num_steps=10)
    result = kr.attacks.Ensemble([far, near]).run(model, x, y, seed=0)
    first, second = far.run(model, x, y), near.run(model, x, y, seed=0)
    fooled = first.success
    assert 0 < fooled.sum() < len(x)
    assert second.norms["linf"][fooled].mean() < 0.05
    np.testing.assert_array_equal(result.x_adv[fooled], first.x_adv[fooled])
    np.testing.assert_allclose(result.x_adv[~fooled], second.x_adv[~fooled], atol=1e-3)


def test_nested_ensemble_in_an_evaluation(problem):
    model, x, y = problem
    attack = kr.attacks.Ensemble([kr.attacks.Ensemble(MEMBERS[:2]), *MEMBERS[2:]])
    expected = 1 - kr.attacks.Ensemble(MEMBERS).run(model, x, y).success_rate
    assert kr.evaluation.robust_accuracy(
        model, x, y, attack=attack, batch_size=16
    ) == pytest.approx(expected)


def test_progress(problem, capsys):
    kr.attacks.Ensemble(MEMBERS).run(*problem)
    assert capsys.readouterr().out == ""
    kr.attacks.Ensemble(MEMBERS).run(*problem, verbose=1)
    shown = capsys.readouterr().out
    assert "FGSM 1/4 on 60 images" in shown
    assert "9 of 60 images are robust" in shown


@pytest.mark.parametrize(
    ("attacks", "message"),
    [
        ([], "`attacks`.*at least one.*Received: attacks=\\[\\]"),
        (MEMBERS[0].run, "`attacks` must be a sequence"),
        (["pgd"], "`keras_robust.attacks.Attack`. Received: attacks=\\['pgd'\\]"),
        ("pgd", "`attacks`"),
        ([MEMBERS[0], kr.attacks.FGSM(0.1, targeted=True)], "same `targeted`.*\\[False, True\\]"),
        ([MEMBERS[0], kr.attacks.FGSM(0.1, bounds=(-1, 1))], "same `bounds`"),
        ([MEMBERS[0], kr.attacks.FGSM(0.1, from_logits=False)], "same `from_logits`"),
    ],
    ids=str,
)
def test_bad_attacks(attacks, message):
    with pytest.raises(ValueError, match=message):
        kr.attacks.Ensemble(attacks)


def test_a_single_attack_is_a_sequence_of_one(problem):
    model, x, y = problem
    attack = kr.attacks.Ensemble(MEMBERS[0])
    assert attack.get_config() == kr.attacks.Ensemble([MEMBERS[0]]).get_config()
    result, expected = attack.run(model, x, y), MEMBERS[0].run(model, x, y)
    np.testing.assert_array_equal(result.x_adv, expected.x_adv)
    assert kr.attacks.Ensemble(attack).attacks == [attack]


def test_all_attacks_are_checked_before_any_runs(problem):
    attack = kr.attacks.Ensemble([kr.attacks.FGSM(0.1), kr.attacks.APGD(0.1, loss="dlr_targeted")])
    model, x, _ = linear_model(num_classes=3), *problem[1:]
    with pytest.raises(ValueError, match="model of 3 classes"):
        attack.check(model, x, np.zeros(len(x), int))
