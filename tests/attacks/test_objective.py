"""Adaptive attacks: surrogate objectives, layers without a gradient, and random layers."""

import keras
import numpy as np
import pytest
from keras import ops

import keras_robust as kr
from keras_robust.model.classifier import Classifier

pytestmark = pytest.mark.slow_on_jax


@keras.saving.register_keras_serializable(package="test_objective")
class Quantize(keras.layers.Layer):
    """Rounds to a few levels. Its gradient is 0 almost everywhere."""

    def call(self, x):
        return ops.round(x * 4) / 4 + 0.0 * x


class InputNoise(keras.layers.Layer):
    """Adds noise, also in inference mode."""

    def __init__(self, stddev, **kwargs):
        super().__init__(**kwargs)
        self.stddev = stddev
        self.generator = keras.random.SeedGenerator(1)

    def call(self, x):
        noise = keras.random.normal(ops.shape(x), seed=self.generator)
        return x + ops.cast(self.stddev * noise, x.dtype)


class NoisySlope(keras.layers.Layer):
    """Computes logits (z, -z), where z is a sum with random weights."""

    def __init__(self, mean, stddev):
        super().__init__()
        self.mean, self.stddev = mean, stddev
        self.generator = keras.random.SeedGenerator(0)

    def call(self, x):
        noise = keras.random.normal(ops.shape(x), seed=self.generator)
        z = ops.sum(x * (self.mean + self.stddev * noise), axis=1)
        return ops.stack([z, -z], axis=1)


@keras.saving.register_keras_serializable(package="test_objective")
def base_logits(model, x, y):
    """Computes the class scores without the first layer."""
    return model.layers[-1](x, training=False)


@pytest.fixture(scope="module")
def data(embedded_data):
    return tuple(values[:128] for values in embedded_data[1])


@pytest.fixture(scope="module")
def quantized(trained_model):
    return keras.Sequential([keras.Input((28, 28, 1)), Quantize(name="quantize"), trained_model])


def accuracy(attack, model, data):
    return 1 - attack.run(model, *data, seed=0).success_rate


def test_bpda_attacks_through_a_layer_without_gradient(quantized, data):
    masked = accuracy(kr.attacks.PGD(0.2, random_start=False), quantized, data)
    adaptive = accuracy(kr.attacks.PGD(0.2, objective=kr.attacks.BPDA("quantize")), quantized, data)
    assert masked > 0.75
    assert adaptive < 0.15


def test_bpda_in_a_nested_robust_model(quantized, data):
    outer = kr.RobustModel(keras.Sequential([keras.Input((28, 28, 1)), quantized]))
    attack = kr.attacks.PGD(0.2, objective=kr.attacks.BPDA(["quantize"]))
    assert accuracy(attack, outer, data) < 0.15


def test_bpda_does_not_change_the_forward_pass(quantized, data):
    x, y = data
    scores = kr.attacks.BPDA("quantize")(quantized, ops.convert_to_tensor(x), y)
    np.testing.assert_allclose(
        ops.convert_to_numpy(scores), ops.convert_to_numpy(quantized(x)), rtol=1e-5, atol=1e-5
    )


def test_the_gradient_of_bpda_is_that_of_the_approximation():
    # The logits are (0, sum round(x) * w). With h(x) = x^3 in place of rounding, the gradient is
    # 3 x^2 w, so an L2 step goes along x^2 w.
    weights = np.random.default_rng(0).normal(size=(16, 1)).astype("float32")
    model = keras.Sequential(
        [keras.Input((4, 4, 1)), Quantize(name="q"), keras.layers.Flatten(), keras.layers.Dense(2)]
    )
    model.set_weights([np.concatenate([0 * weights, weights], 1), np.zeros(2, "float32")])
    x = np.random.default_rng(1).uniform(0.3, 0.7, (1, 4, 4, 1)).astype("float32")
    y = ops.convert_to_numpy(model(x)).argmax(1)
    objective = kr.attacks.BPDA("q", backward=lambda x: x**3)
    attack = kr.attacks.FGSM(100.0, norm="l2", bounds=(-500, 500), objective=objective)
    direction = (-1) ** y[0] * x[0] ** 2 * weights.reshape(4, 4, 1)
    expected = x + 100 * direction / np.linalg.norm(direction)
    result = attack.run(model, x, y)
    assert result.success.all()
    np.testing.assert_allclose(result.x_adv, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"layers": []}, "`layers` must hold at least one"),
        ({"layers": [3]}, "`layers` must hold"),
        ({"layers": "q", "backward": 2}, "`backward` must be a callable"),
    ],
)
def test_bad_arguments_of_bpda(arguments, message):
    with pytest.raises(ValueError, match=message):
        kr.attacks.BPDA(**arguments)


def test_an_unknown_layer_of_bpda_is_an_error_with_the_known_names(quantized, data):
    with pytest.raises(ValueError, match=r"has .*quantize.*Received: .quantise"):
        accuracy(kr.attacks.PGD(0.1, objective=kr.attacks.BPDA("quantise")), quantized, data)


def test_bpda_needs_an_approximation_if_the_shape_changes(trained_model, data):
    name = trained_model.layers[0].name
    with pytest.raises(ValueError, match=r"must return the shape of the output.*backward=None"):
        accuracy(kr.attacks.PGD(0.1, objective=kr.attacks.BPDA(name)), trained_model, data)


def test_an_objective_of_class_scores_replaces_the_model(quantized, data):
    for attack in (kr.attacks.PGD, kr.attacks.MIM, kr.attacks.MultiTargeted):
        assert accuracy(attack(0.2, objective=base_logits), quantized, data) < 0.15


def test_an_objective_of_one_value_per_example_is_maximized(trained_model, data):
    # The attack maximizes the logit of class 3, so that it is predicted for most images.
    def third_logit(model, x, y):
        return model(x, training=False)[:, 3]

    x, _ = data
    attack = kr.attacks.PGD(0.3, objective=third_logit)
    x_adv = ops.convert_to_numpy(attack(trained_model, x, np.full(len(x), 0), seed=0))
    assert (ops.convert_to_numpy(trained_model(x_adv)).argmax(1) == 3).mean() > 0.9


def test_success_is_that_of_the_model_and_not_of_the_objective(trained_model, data):
    def other_model(model, x, y):
        return -model(x, training=False)

    x, y = data
    result = kr.attacks.PGD(0.1, objective=other_model).run(trained_model, x, y, seed=0)
    predicted = ops.convert_to_numpy(trained_model(result.x_adv)).argmax(1)
    np.testing.assert_array_equal(result.success, predicted != y)
    assert result.success_rate < 0.3


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        (3, "`objective` must be a callable"),
        (lambda model, x, y: x, "`objective` must return one value.*\\(None|128, 28"),
    ],
)
def test_bad_objectives(trained_model, data, objective, message):
    with pytest.raises(ValueError, match=message):
        accuracy(kr.attacks.PGD(0.1, objective=objective), trained_model, data)


def test_multi_targeted_needs_class_scores(trained_model, data):
    attack = kr.attacks.MultiTargeted(0.1, objective=lambda model, x, y: model(x)[:, 0])
    with pytest.raises(ValueError, match="MultiTargeted needs class scores"):
        accuracy(attack, trained_model, data)


def test_an_attack_with_an_objective_can_be_serialized(quantized, data):
    attack = kr.attacks.PGD(0.1, objective=base_logits)
    serialized = keras.saving.serialize_keras_object(attack)
    again = keras.saving.deserialize_keras_object(serialized)
    assert accuracy(again, quantized, data) == accuracy(attack, quantized, data)


def test_more_samples_average_out_noise():
    # The gradient is 1 + 2 n with n normal. Its sign is right with probability Phi(1 / 2) = 0.691,
    # and that of the mean of 64 draws with probability Phi(64^0.5 / 2) = 0.99997.
    model = keras.Sequential([keras.Input((50,)), NoisySlope(1.0, 2.0)])
    x, y = np.full((200, 50), 0.5, "float32"), np.ones(200, "int32")
    share = {
        num_samples: (
            perturbation(kr.attacks.FGSM(0.1, num_samples=num_samples), model, x, y) > 0
        ).mean()
        for num_samples in (1, 64)
    }
    assert abs(share[1] - 0.691) < 0.03
    assert share[64] > 0.995


def perturbation(attack, model, x, y):
    function = Classifier(model).compiled(
        attack.key, lambda model, x, y: attack.perturb(model, x, y, 0)
    )
    return ops.convert_to_numpy(function(x, y)) - x


def test_random_models_only_depend_on_the_seed(trained_model, data):
    x, y = data
    model = keras.Sequential([keras.Input((28, 28, 1)), InputNoise(0.3), trained_model])
    state = [ops.convert_to_numpy(v) for v in model.non_trainable_variables]
    attack = kr.attacks.PGD(0.05, num_steps=3, num_samples=2)
    first, again, other = (attack.run(model, x, y, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first.x_adv, again.x_adv)
    np.testing.assert_array_equal(first.success, again.success)
    assert abs(first.x_adv - other.x_adv).max() > 0.01
    for before, after in zip(state, model.non_trainable_variables, strict=True):
        np.testing.assert_array_equal(before, ops.convert_to_numpy(after))
    assert (first.num_gradients == 6).all()


def test_every_step_draws_new_noise():
    # With the same noise in each step, all steps would have the same direction.
    model = keras.Sequential([keras.Input((1000,)), NoisySlope(0.0, 1.0)])
    x, y = np.full((1, 1000), 0.5, "float32"), np.zeros(1, "int32")
    attack = kr.attacks.PGD(0.4, step_size=0.1, num_steps=2, random_start=False)
    steps = np.round(perturbation(attack, model, x, y) / 0.1)
    # The signs of two steps are independent, so half of the values cancel.
    assert 0.4 < (steps == 0).mean() < 0.6
