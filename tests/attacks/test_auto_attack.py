"""AutoAttack has the documented attacks, and is exact on linear models."""

import keras
import numpy as np
import pytest
from keras import ops

import keras_robust as kr
from keras_robust import backend
from keras_robust.attacks.insistent_apgd import InsistentAPGD
from keras_robust.model.classifier import Classifier

pytestmark = pytest.mark.slow_on_jax


@keras.saving.register_keras_serializable(package="test_auto_attack")
def twice(model, x, y):
    return 2.0 * model(x)


def parts(attack, num_classes):
    return [
        (type(part).__name__, {k: v for k, v in part.get_config().items() if k != "objective"})
        for part in attack.ensemble(num_classes).attacks
    ]


@pytest.mark.parametrize(("norm", "num_restarts", "num_targets"), [("l2", 1, 9), ("l1", 5, 5)])
def test_standard_has_the_settings_of_the_authors(norm, num_restarts, num_targets):
    attack = kr.attacks.AutoAttack(0.1, norm=norm, bounds=(-1.0, 1.0))
    expected = [
        ("APGD", {"loss": "ce", "num_steps": 100, "num_restarts": num_restarts}),
        (
            "APGD",
            {
                "loss": "dlr_targeted",
                "num_targets": num_targets,
                "num_steps": 100,
                "num_restarts": 1,
            },
        ),
        ("FAB", {"num_targets": 9, "num_steps": 100, "num_restarts": 1}),
        ("Square", {"num_queries": 5000, "num_restarts": 1, "initial_fraction": 0.8}),
    ]
    common = {"epsilon": 0.1, "norm": norm, "bounds": [-1.0, 1.0], "num_samples": 1}
    for (name, config), (expected_name, values) in zip(parts(attack, 10), expected, strict=True):
        assert name == expected_name
        assert {**config, **values, **common} == config


def test_rand_averages_over_20_draws():
    for num_classes, loss in ((10, "dlr"), (3, "dlr"), (2, "margin")):
        names, configs = zip(
            *parts(kr.attacks.AutoAttack(0.1, version="rand"), num_classes), strict=True
        )
        assert names == ("APGD", "APGD")
        assert [config["loss"] for config in configs] == ["ce", loss]
        assert [config["num_samples"] for config in configs] == [20, 20]
        assert [config["num_steps"] for config in configs] == [100, 100]


def test_fast_has_its_documented_settings():
    attack = kr.attacks.AutoAttack(0.1, norm="l2", version="fast")
    names, configs = zip(*parts(attack, 10), strict=True)
    assert names == ("APGD", "InsistentAPGD", "Square")
    assert [config.get("loss") for config in configs] == ["ce", "margin_targeted", None]
    assert [config.get("num_steps") for config in configs] == [10, 50, None]
    assert (configs[1]["num_targets"], configs[1]["num_restarts"]) == (4, 21)
    assert configs[1]["target_order"] == "distance"
    assert configs[2]["num_queries"] == 750
    assert all(config["norm"] == "l2" and config["epsilon"] == 0.1 for config in configs)


@pytest.mark.parametrize(
    ("num_classes", "num_targets"), [(10, 4), pytest.param(3, 2, marks=pytest.mark.slow), (2, 1)]
)
def test_insistent_apgd_only_restarts_on_examples_near_the_boundary(num_classes, num_targets):
    # `z_0 = sum(x)`, `z_1 = 0`, and the other logits are much lower. The largest margin is
    # `4 * epsilon - sum(x)`: 0.048, 0.13 and 0.5 times the margin at `x`.
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(num_classes)])
    weights = np.zeros((4, num_classes))
    weights[:, 0] = 1
    model.set_weights([weights, -50.0 * (np.arange(num_classes) > 1)])
    epsilon = 0.1
    x = np.repeat(epsilon * np.array([[1.05], [1.15], [2.0]]), 4, axis=1).astype("float32")
    for objective in (None, lambda model, x, y: model(x)):
        attack = InsistentAPGD(
            epsilon, loss="margin_targeted", target_order="distance", num_targets=4, num_steps=3,
            num_restarts=6, bounds=(-9.0, 9.0), objective=objective,
        )  # fmt: skip
        result = attack.run(model, x, np.zeros(3, int), seed=0)
        assert not result.success.any()
        ordering = num_classes - 1 if num_classes > 2 else 0
        expected = ordering + 3 * np.array([6 * num_targets, 4, 4])
        np.testing.assert_array_equal(result.num_gradients, expected)


def test_few_classes_replace_the_dlr_loss_by_the_margin():
    for num_classes in (2, 3):
        losses = [
            config.get("loss") for _, config in parts(kr.attacks.AutoAttack(0.1), num_classes)
        ]
        assert losses == ["ce", "margin_targeted", None, None]


@pytest.mark.parametrize(
    ("norm", "num_classes", "version"),
    [
        pytest.param("linf", 2, "standard", marks=pytest.mark.slow),
        pytest.param("l2", 3, "standard", marks=pytest.mark.slow),
        ("linf", 5, "standard"),
        ("l1", 3, "standard"),
        pytest.param("l2", 5, "standard", marks=pytest.mark.slow),
        ("linf", 5, "fast"),
        pytest.param("l2", 3, "fast", marks=pytest.mark.slow),
        pytest.param("l1", 2, "fast", marks=pytest.mark.slow),
    ],
)
def test_the_robust_accuracy_of_a_linear_model_is_exact(norm, num_classes, version):
    # The distance to the points that are classified as j is that of the hyperplane where both
    # logits are equal: (z_y - z_j) / ||w_y - w_j|| in the dual norm. The bounds are far away.
    rng = np.random.default_rng(num_classes)
    weights, bias = rng.normal(size=(16, num_classes)), rng.normal(size=num_classes)
    model = keras.Sequential(
        [keras.Input((4, 4, 1)), keras.layers.Flatten(), keras.layers.Dense(num_classes)]
    )
    model.set_weights([weights, bias])
    x = rng.uniform(0.4, 0.6, (24, 4, 4, 1)).astype("float32")
    logits = x.reshape(24, -1) @ weights + bias
    y = logits.argmax(1)
    gaps = logits[np.arange(24), y][:, None] - logits
    order = {"linf": 1, "l2": 2, "l1": np.inf}[norm]
    lengths = np.linalg.norm(weights.T[None] - weights.T[y][:, None], order, axis=2)
    distances = np.where(lengths > 0, gaps / np.maximum(lengths, 1e-9), np.inf).min(1)
    epsilon = float(np.median(distances)) * 1.001
    truth = distances < epsilon
    assert 0.3 < truth.mean() < 0.7
    attack = kr.attacks.AutoAttack(epsilon, norm, version, bounds=(-9, 9))
    result = attack.run(model, x, y, seed=0)
    np.testing.assert_array_equal(result.success, truth)
    assert result.norms[norm].max() <= epsilon + 1e-6


@pytest.mark.slow
def test_fast_finds_nearly_what_standard_finds(trained_model, embedded_data):
    x, y = (values[:300] for values in embedded_data[1])
    for norm, epsilon in (("linf", 0.015), ("l2", 0.3), ("l1", 1.5)):
        standard, fast = (
            kr.attacks.AutoAttack(epsilon, norm, version).run(trained_model, x, y, seed=0)
            for version in ("standard", "fast")
        )
        assert 0.2 < standard.success.mean() < 0.9
        assert fast.success.sum() >= standard.success.sum() - 1
        assert fast.num_gradients.sum() < 0.25 * standard.num_gradients.sum()


def test_attacks_by_gradient_use_the_objective():
    attack = kr.attacks.AutoAttack(0.1, objective=twice)
    objectives = [part.objective for part in attack.ensemble(10).attacks]
    assert objectives == [twice, twice, twice, None]


@pytest.mark.slow
def test_call_in_a_compiled_function():
    model = keras.Sequential(
        [keras.Input((2, 2, 1)), keras.layers.Flatten(), keras.layers.Dense(4)]
    )
    x, y = np.full((3, 2, 2, 1), 0.5, "float32"), np.zeros(3, int)
    attack = kr.attacks.AutoAttack(0.4)
    function = Classifier(model).compiled("traced", lambda m, *args: attack(m, *args))
    x_adv = ops.convert_to_numpy(function(x, y, backend.make_seed(0)))
    expected = attack.run(model, x, y, seed=0)
    fooled = ops.convert_to_numpy(model(x_adv)).argmax(1) != 0
    np.testing.assert_array_equal(fooled, expected.success)
    assert abs(x_adv - x).max() <= 0.4 + 1e-6


def test_data_are_checked_before_any_work():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(4)])
    with pytest.raises(ValueError, match="`x` must lie inside"):
        kr.attacks.AutoAttack(0.1).check(model, np.full((2, 4), 2.0, "float32"), np.zeros(2, int))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"epsilon": -1}, "`epsilon`"),
        ({"norm": "l3"}, "`norm`"),
        ({"version": "plus"}, "`version`.*'standard', 'rand', 'fast'.*Received: version='plus'"),
        ({"bounds": (1, 0)}, "`bounds`"),
    ],
    ids=str,
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        kr.attacks.AutoAttack(**{"epsilon": 0.1, **arguments})
