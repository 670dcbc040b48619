"""Attacks on a WNLL head use each gradient, and their success is that of u on the batch."""

import functools

import keras
import numpy as np
import pytest
from keras import ops

import keras_robust as kr
from keras_robust.evaluation.surrogates import with_surrogates
from keras_robust.metrics.perturbed import batch_seed, perturbed_images
from keras_robust.model.classifier import Classifier

pytestmark = pytest.mark.slow_on_jax

evaluate = functools.partial(kr.evaluate, checks=False, verbose=0)
RNG = np.random.default_rng(0)
CENTERS = RNG.uniform(0.35, 0.65, (3, 6))


def data(count, seed=0):
    y = np.arange(count) % 3
    x = CENTERS[y] + 0.1 * np.random.default_rng(seed).normal(size=(count, 6))
    return np.clip(x, 0, 1).astype("float32"), y


X, Y = data(30, seed=1)


def make_model(gradient="exact", phase="wnll", **arguments):
    """Returns a model with a trained linear branch. Its weights are always the same."""
    keras.utils.set_random_seed(1)
    settings = {"units": 16, "num_neighbors": 8, "sigma_neighbor": 4, "template_size": 60}
    head = kr.layers.WNLLHead(3, gradient=gradient, **{**settings, **arguments})
    model = keras.Sequential([keras.Input((6,)), head])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.02), loss)
    model.fit(*data(120), epochs=10, verbose=0)
    head.adapt(*data(120))
    head.phase = phase
    return model


@pytest.fixture(scope="module")
def models():
    return {name: make_model(name) for name in ("exact", "straight_through", "linear")}


def classes(model, x):
    return ops.convert_to_numpy(model(x)).argmax(axis=1)


def assert_result_agrees_with_the_model(model, result):
    """Success must be that of u on the returned batch, with original images after failures."""
    np.testing.assert_array_equal(result.success, classes(model, result.x_adv) != Y)
    np.testing.assert_array_equal(result.x_adv[~result.success], X[~result.success])
    assert abs(result.x_adv - X).max() <= 0.1 + 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("gradient", ["exact", "straight_through", "linear"])
@pytest.mark.parametrize("attack", [kr.attacks.PGD(0.1, num_steps=5), kr.attacks.FGSM(0.1)],
                         ids=["pgd", "fgsm"])  # fmt: skip
def test_attack_by_each_gradient(models, gradient, attack):
    model = models[gradient]
    assert (classes(model, X) == Y).mean() > 0.8
    result = attack.run(model, X, Y, seed=0)
    assert_result_agrees_with_the_model(model, result)
    assert result.success.mean() > (classes(model, X) != Y).mean()


@pytest.mark.slow
@pytest.mark.parametrize("surrogate", ["linear", "straight_through", "exact", "soft_neighbors"])
def test_attack_by_each_surrogate(models, surrogate):
    objective = kr.attacks.WNLLSurrogate(surrogate)
    attack = kr.attacks.PGD(0.1, num_steps=5, objective=objective, loss="margin")
    model = models["exact"]
    result = attack.run(model, X, Y, seed=0)
    assert_result_agrees_with_the_model(model, result)
    assert result.success.mean() > (classes(model, X) != Y).mean()


@pytest.mark.slow
def test_a_surrogate_agrees_with_the_head_gradient_of_that_name(models):
    """The surrogate does not depend on the head's own gradient (the weights are equal)."""
    for gradient in ("linear", "straight_through"):
        attack = kr.attacks.IFGSM(0.1, num_steps=3, objective=kr.attacks.WNLLSurrogate(gradient))
        plain = kr.attacks.IFGSM(0.1, num_steps=3)
        surrogates, own = (
            attack.perturb(models["exact"], X, Y, 0),
            plain.perturb(models[gradient], X, Y, 0),
        )
        moved = abs(ops.convert_to_numpy(surrogates) - ops.convert_to_numpy(own)).max(axis=1)
        # The sign may differ where the gradient is nearly 0.
        assert (moved < 1e-5).mean() > 0.8


@pytest.mark.slow
def test_the_linear_surrogate_attacks_the_dense_layers(models):
    model = models["exact"]
    head = model.layers[-1]
    dense = keras.Sequential(
        [keras.Input((6,)), keras.layers.Dense(16, "relu"), keras.layers.Dense(3)]
    )
    dense.set_weights([*head.buffer.get_weights(), *head.linear.get_weights()])
    objective = kr.attacks.WNLLSurrogate("linear")
    found = kr.attacks.IFGSM(0.1, num_steps=3, objective=objective).perturb(model, X, Y, 0)
    expected = kr.attacks.IFGSM(0.1, num_steps=3).perturb(dense, X, Y, 0)
    np.testing.assert_allclose(
        ops.convert_to_numpy(found), ops.convert_to_numpy(expected), atol=1e-5
    )


def test_rounds_keep_the_batch(models):
    """Restarts get the whole batch, because predictions depend on its composition."""
    result = kr.attacks.PGD(0.05, num_steps=3, num_restarts=3).run(models["exact"], X, Y, seed=0)
    assert_result_agrees_with_the_model(models["exact"], result)
    assert 0 < result.success.mean() < 1


@pytest.mark.slow
def test_an_attack_without_gradients(models):
    result = kr.attacks.Square(0.1, num_queries=20).run(models["exact"], X, Y, seed=0)
    assert_result_agrees_with_the_model(models["exact"], result)


@pytest.mark.slow
def test_without_joint_each_example_is_attacked_separately(models):
    model = models["exact"]
    head = model.layers[-1]
    head.joint = False
    try:
        result = kr.attacks.PGD(0.1, num_steps=5).run(model, X, Y, seed=0)
        assert_result_agrees_with_the_model(model, result)
        parts = [classes(model, x[None])[0] for x in result.x_adv]
        np.testing.assert_array_equal(result.success, parts != Y)
    finally:
        head.joint = True


@pytest.mark.slow
def test_evaluation_does_not_change_batches(models, tmp_path):
    model = models["straight_through"]
    seen = []

    class Recording(kr.attacks.FGSM):
        def run_checked(self, classifier, x, *args, **kwargs):
            seen.append(x)
            return super().run_checked(classifier, x, *args, **kwargs)

    attacks = {"FGSM": Recording(0.03)}
    run = functools.partial(
        evaluate, model, X, Y, attacks, batch_size=12, output=tmp_path, worst_case_only=True
    )
    report = run()
    surrogates = [
        f"FGSM, {name}" for name in ("linear", "straight_through", "exact", "soft_neighbors")
    ]
    assert [row.name for row in report.rows] == ["clean", "FGSM", *surrogates, "worst case"]
    worst = report.row("worst case").correct
    assert 0 < worst.mean() < report.accuracy("clean")
    for row in report.rows:
        assert (worst <= row.correct).all()
    clean = [classes(model, X[i : i + 12]) == Y[i : i + 12] for i in (0, 12, 24)]
    np.testing.assert_array_equal(report.row("clean").correct, np.concatenate(clean))
    assert len(seen) == 15
    for number, x in enumerate(seen):
        start = 12 * (number % 3)
        np.testing.assert_array_equal(x, X[start : start + 12])

    resumed = run(resume=True)
    assert len(seen) == 15
    for row in report.rows:
        np.testing.assert_array_equal(resumed.row(row.name).correct, row.correct)
    model.layers[-1].joint = False
    try:
        with pytest.raises(ValueError, match="resume"):
            run(resume=True)
    finally:
        model.layers[-1].joint = True


@pytest.mark.slow
@pytest.mark.parametrize(("gradient", "is_sound"), [("exact", True), ("straight_through", False)])
def test_the_checks_run_on_a_joint_batch(models, gradient, is_sound):
    attack = kr.attacks.PGD(0.05, num_steps=5)
    results = kr.evaluation.check(models[gradient], X, Y, attack=attack, verbose=0)
    by_name = {result.name: result for result in results}
    not_run = {name for name, result in by_name.items() if result.passed is None}
    assert not_run <= {"white-box beats transfer", "robust accuracy is below clean accuracy"}
    assert by_name["the gradient agrees with finite differences"].passed is is_sound
    success = attack.run(models[gradient], X, Y, seed=batch_seed(0, 0)).success
    figures = by_name["the attack is no weaker than plain PGD"].figures
    correct = classes(models[gradient], X) == Y
    assert figures["num_examples"] == correct.sum() < len(X)
    assert figures["accuracy"] == (~success[correct]).mean()


def test_metrics_do_not_pad_the_batch(models):
    """The last, smaller batch is not padded with copies."""
    attack = kr.attacks.FGSM(0.1)
    found = perturbed_images(Classifier(models["exact"]), X, Y, attack, batch_size=12, seed=0)
    alone = perturbed_images(
        Classifier(models["exact"]), X[24:], Y[24:], attack, batch_size=12, seed=0
    )
    np.testing.assert_array_equal(found[24:], alone)
    repeated = np.r_[24:30, [29] * 6]
    filled = perturbed_images(
        Classifier(models["exact"]), X[repeated], Y[repeated], attack, 12, seed=0
    )
    assert (filled[:6] != alone).any()


def test_surrogates_are_added_for_attacks_by_gradients(models):
    attacks = {
        "PGD": kr.attacks.PGD(0.1), "Square": kr.attacks.Square(0.1),
        "DeepFool": kr.attacks.DeepFool(),
        "other": kr.attacks.PGD(0.1, objective=kr.attacks.WNLLSurrogate("linear")),
        "both": kr.attacks.Ensemble([kr.attacks.PGD(0.1), kr.attacks.Square(0.1)]),
    }  # fmt: skip
    joined = with_surrogates(Classifier(models["exact"]), attacks)
    added = {name: attack for name, attack in joined.items() if name not in attacks}
    assert {name.split(",")[0] for name in added} == {"PGD", "both"}
    assert len(added) == 8
    assert added["PGD, exact"].loss == "margin"
    assert added["PGD, linear"].loss == "ce"
    assert added["PGD, linear"].epsilon == 0.1
    member = added["both, soft_neighbors"].attacks[0]
    assert member.objective.surrogate == "soft_neighbors"
    assert (
        with_surrogates(Classifier(keras.Sequential([keras.layers.Dense(3)])), attacks) == attacks
    )
    wrapped = kr.RobustModel(keras.Sequential([models["exact"]]))
    assert with_surrogates(Classifier(wrapped), attacks).keys() == joined.keys()


@pytest.mark.slow
def test_no_surrogates_are_added_in_the_linear_phase():
    model = make_model(phase="linear")
    report = evaluate(model, X, Y, {"FGSM": kr.attacks.FGSM(0.1)}, batch_size=12)
    assert [row.name for row in report.rows] == ["clean", "FGSM", "worst case"]


def test_bad_surrogates(models):
    with pytest.raises(ValueError, match="surrogate"):
        kr.attacks.WNLLSurrogate("quadratic")
    plain = keras.Sequential([keras.Input((6,)), keras.layers.Dense(3)])
    attack = kr.attacks.FGSM(0.1, objective=kr.attacks.WNLLSurrogate("linear"))
    with pytest.raises(ValueError, match=r"no `keras_robust.layers.WNLLHead`"):
        attack.run(plain, X, Y, seed=0)
