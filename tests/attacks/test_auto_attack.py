"""AutoAttack: its parts, and the exact robust accuracy of linear models."""

import keras
import numpy as np
import pytest
from keras import ops

import keras_robust as kr
from keras_robust import backend
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
def test_standard_is_the_authors_set(norm, num_restarts, num_targets):
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


def test_few_classes():
    for num_classes in (2, 3):
        losses = [
            config.get("loss") for _, config in parts(kr.attacks.AutoAttack(0.1), num_classes)
        ]
        assert losses == ["ce", "margin_targeted", None, None]


@pytest.mark.parametrize(
    ("norm", "num_classes"),
    [("linf", 2), ("l2", 3), ("linf", 5), ("l1", 3), pytest.param("l2", 5, marks=pytest.mark.slow)],
)
def test_the_robust_accuracy_of_a_linear_model_is_exact(norm, num_classes):
    # The nearest point that is classified as j is at the distance of the hyperplane where both
    # logits are equal, (z_y - z_j) / ||w_y - w_j|| in the dual norm; the bounds are far away.
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
    result = kr.attacks.AutoAttack(epsilon, norm, bounds=(-9, 9)).run(model, x, y, seed=0)
    np.testing.assert_array_equal(result.success, truth)
    assert result.norms[norm].max() <= epsilon + 1e-6


def test_the_gradients_are_those_of_the_objective():
    attack = kr.attacks.AutoAttack(0.1, objective=twice)
    objectives = [part.objective for part in attack.ensemble(10).attacks]
    assert objectives == [twice, twice, twice, None]


@pytest.mark.slow
def test_in_a_compiled_function():
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
        ({"version": "plus"}, "`version`.*'standard', 'rand'.*Received: version='plus'"),
        ({"bounds": (1, 0)}, "`bounds`"),
    ],
    ids=str,
)
def test_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        kr.attacks.AutoAttack(**{"epsilon": 0.1, **arguments})
