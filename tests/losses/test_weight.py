"""Weights of losses may change during training."""

import copy

import keras
import numpy as np
import pytest

import keras_robust as kr

FGSM = kr.attacks.FGSM(0.1)


def fixed_trades(weight):
    """Returns TRADES on constant images, so that steps only differ in the weight."""
    loss = kr.losses.TRADES(kr.attacks.PGD(0.1, num_steps=1), beta=weight)
    loss.prepare = lambda model, x, y, seed: (x, 1 - x)
    return loss


LOSSES = {
    "fisher": lambda weight: kr.losses.FisherInformation(weight),
    "trades": fixed_trades,
    "sum": lambda weight: kr.losses.Sum(
        [keras.losses.SparseCategoricalCrossentropy(from_logits=True), kr.losses.Sum(
            [kr.losses.AdversarialTraining(FGSM), kr.losses.FisherInformation(0.5)],
            weights=[weight, 1.0])]),
    "in-a-sum": lambda weight: (
        kr.losses.AdversarialTraining(FGSM) + kr.losses.FisherInformation(weight)),
    "of-adversarial-training": lambda weight: kr.losses.AdversarialTraining(
        FGSM, loss=kr.losses.FisherInformation(weight)),
}  # fmt: skip


class Assign(keras.callbacks.Callback):
    def __init__(self, variable, values):
        super().__init__()
        self.variable, self.values = variable, values

    def on_epoch_begin(self, epoch, logs=None):
        self.variable.assign(self.values[epoch])


@pytest.mark.parametrize("name", LOSSES)
def test_a_callback_may_change_a_variable(linear, name):
    values = [0.25, 1.0, 0.0]
    variable = keras.Variable(0.5, trainable=False)
    found, robust = linear.fit(
        LOSSES[name](variable), epochs=3, eager=False, callbacks=[Assign(variable, values)]
    )
    fixed = [linear.fit(LOSSES[name](value))[0][0] for value in values]
    assert np.ptp(fixed) > 0.05
    np.testing.assert_allclose(found, fixed, rtol=1e-5)
    # A step does not change the variable, which is not a weight of the classifier.
    assert float(variable.value) == 0.0
    assert len(robust.trainable_variables) == len(robust.base_model.weights) == 1


@pytest.mark.parametrize("value", [-0.1, 1.5, float("nan"), float("inf")])
def test_a_variable_out_of_range_makes_the_loss_nan(linear, value):
    variable = keras.Variable(0.5, trainable=False)
    callbacks = [Assign(variable, [0.5, value])]
    found, _ = linear.fit(LOSSES["fisher"](variable), epochs=2, eager=False, callbacks=callbacks)
    assert np.isfinite(found[0])
    assert np.isnan(found[1])


@pytest.mark.parametrize("name", ["fisher", "in-a-sum"])
def test_a_schedule_depends_on_the_iterations_of_the_optimizer(linear, name):
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay([0, 2], [0.0, 0.5, 1.0])
    found, robust = linear.fit(LOSSES[name](schedule), epochs=4, eager=False)
    fixed = [linear.fit(LOSSES[name](value))[0][0] for value in (0.0, 0.5, 0.5, 1.0)]
    assert np.ptp(fixed) > 0.05
    np.testing.assert_allclose(found, fixed, rtol=1e-5)
    robust.optimizer.iterations.assign(0)
    again = robust.fit(linear.x, linear.y, batch_size=12, verbose=0).history["loss"]
    np.testing.assert_allclose(again, fixed[:1], rtol=1e-5)


@pytest.mark.slow_on_jax
def test_graph_interpolation():
    rng = np.random.default_rng(0)
    x, y = rng.random((24, 6)).astype("float32"), np.arange(24) % 3

    def fit(weight, epochs=1, callbacks=()):
        keras.utils.set_random_seed(1)
        head = kr.layers.WNLLHead(3, num_neighbors=8, sigma_neighbor=4, template_size=20)
        robust = kr.RobustModel(keras.Sequential([keras.Input((6,)), head]))
        loss = kr.losses.GraphInterpolation(linear_weight=weight)
        robust.compile(keras.optimizers.SGD(0.0), loss)
        arguments = {"batch_size": 24, "shuffle": False, "verbose": 0}
        return robust.fit(x, y, epochs=epochs, callbacks=callbacks, **arguments).history["loss"]

    variable = keras.Variable(0.0, trainable=False)
    found = fit(variable, epochs=2, callbacks=[Assign(variable, [0.0, 2.0])])
    assert found[1] > found[0] + 0.5
    np.testing.assert_allclose(found, [fit(0.0)[0], fit(2.0)[0]], rtol=1e-5)


@pytest.mark.parametrize("name", ["fisher", "in-a-sum", "of-adversarial-training"])
def test_a_variable_is_saved_with_its_value(linear, name, tmp_path):
    variable = keras.Variable(0.25, trainable=False)
    history, robust = linear.fit(
        LOSSES[name](variable), epochs=1, callbacks=[Assign(variable, [0.75])]
    )
    robust.save(tmp_path / "model.keras")
    variable.assign(0.0)
    again = keras.models.load_model(tmp_path / "model.keras")
    arguments = {"batch_size": 12, "shuffle": False, "verbose": 0}
    value = again.fit(linear.x, linear.y, **arguments).history["loss"]
    np.testing.assert_allclose(value, history, rtol=1e-5)


def test_a_schedule_is_saved(linear, tmp_path):
    schedule = keras.optimizers.schedules.PolynomialDecay(0.0, 2, end_learning_rate=1.0)
    loss = kr.losses.FisherInformation(schedule)
    history, robust = linear.fit(loss, epochs=3)
    robust.optimizer.iterations.assign(0)
    robust.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    assert again.loss.weight.get_config() == schedule.get_config()
    value = again.fit(linear.x, linear.y, batch_size=12, epochs=3, verbose=0).history["loss"]
    np.testing.assert_allclose(value, history, rtol=1e-5)
    assert history[2] > history[1] + 0.5


def test_copies_have_the_current_value_of_a_variable():
    variable = keras.Variable(0.25, trainable=False)
    loss = kr.losses.FisherInformation(variable)
    again = copy.deepcopy(loss)
    variable.assign(0.75)
    assert float(again.weight.value) == 0.25
    assert kr.losses.FisherInformation.from_config(loss.get_config()).weight.value == 0.75


@pytest.mark.parametrize(
    "weight",
    [
        lambda: keras.Variable(0.5, trainable=False),
        lambda: keras.optimizers.schedules.CosineDecay(1.0, 10),
    ],
    ids=["variable", "schedule"],
)
def test_changing_weights_need_a_robust_model(linear, weight):
    model = linear.make_model()
    model.compile("sgd", kr.losses.FisherInformation(weight()))
    with pytest.raises(ValueError, match=r"`keras_robust\.RobustModel`: wrap the model"):
        model.fit(linear.x, linear.y, verbose=0)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (-1.0, "Received: weight=-1.0"),
        (1.5, "at most 1. Received: weight=1.5"),
        (float("nan"), "Received: weight=nan"),
        (float("inf"), "Received: weight=inf"),
        ("0.5", "Received: weight='0.5'"),
        (True, "Received: weight=True"),
        (None, "Received: weight=None"),
        (lambda: keras.Variable(-0.5), "Received: weight=-0.5"),
        (lambda: keras.Variable(float("nan")), "Received: weight=nan"),
        (lambda: keras.Variable(2.0), "Received: weight=2.0"),
        (lambda: keras.Variable([0.5, 0.5]), r"must be a scalar.*shape \(2,\)"),
        (lambda: {"variable": -1.0}, "Received: weight=-1.0"),
    ],
)
def test_bad_weights(value, message):
    with pytest.raises(ValueError, match=message):
        kr.losses.FisherInformation(value() if callable(value) else value)


def test_every_loss_checks_its_weight():
    variable = keras.Variable(-1.0)
    with pytest.raises(ValueError, match=r"`beta`.*beta=-1.0"):
        kr.losses.TRADES(kr.attacks.PGD(0.1), beta=variable)
    with pytest.raises(ValueError, match=r"`linear_weight`.*linear_weight=-1.0"):
        kr.losses.GraphInterpolation(linear_weight=variable)
    with pytest.raises(ValueError, match=r"`weights`.*weights=-1.0"):
        kr.losses.Sum([kr.losses.AdversarialTraining(FGSM)], weights=[variable])
