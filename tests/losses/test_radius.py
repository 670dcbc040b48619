"""The radius of a loss's attack may change during training."""

import keras
import numpy as np
import pytest
from keras import ops

import keras_robust as kr

rng = np.random.default_rng(0)
X, Y = rng.random((32, 4, 4, 1), "float32"), rng.integers(0, 3, 32)
Schedule = keras.optimizers.schedules.PolynomialDecay


def make():
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Flatten(), keras.layers.Dense(3)]
    return keras.Sequential([keras.Input((4, 4, 1)), *layers])


def losses_at(attack, loss=kr.losses.AdversarialTraining, steps=4, callbacks=()):
    """Returns the loss of each step, with a learning rate of 0."""
    model = kr.RobustModel(make())
    model.compile(keras.optimizers.SGD(0.0), loss(attack))
    return [
        model.fit(X, Y, batch_size=32, verbose=0, callbacks=list(callbacks)).history["loss"][0]
        for _ in range(steps)
    ]


ATTACKS = {
    "PGD": kr.attacks.PGD(0.1, num_steps=3, random_start=False),
    "step size": kr.attacks.PGD(0.3, step_size=0.1, num_steps=3, random_start=False),
    "FGSM": kr.attacks.FGSM(0.1),
    "MIM": kr.attacks.MIM(0.1, num_steps=3, norm="l2"),
    "APGD": kr.attacks.APGD(0.1, num_steps=3, random_start=False),
}


@pytest.mark.slow
@pytest.mark.slow_on_jax
@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
def test_a_schedule_depends_on_the_step(attack):
    growing = losses_at(attack.replace(epsilon=Schedule(0.0, 2, 0.2)))
    expected = [losses_at(attack.replace(epsilon=e), steps=1)[0] for e in (0.0, 0.1, 0.2, 0.2)]
    np.testing.assert_allclose(growing, expected, rtol=1e-5)
    assert growing[0] < growing[1] < growing[2]


@pytest.mark.slow_on_jax
@pytest.mark.parametrize("loss", [kr.losses.AdversarialTraining, kr.losses.TRADES, kr.losses.MART])
def test_a_variable_is_read_in_every_step(loss):
    epsilon = keras.Variable(0.0, trainable=False)
    attack = kr.attacks.PGD(epsilon, num_steps=3, random_start=False)
    grow = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda *_: epsilon.assign(ops.minimum(epsilon + 0.1, 0.2))
    )
    growing = losses_at(attack, loss, callbacks=[grow])
    expected = [
        losses_at(attack.replace(epsilon=e), loss, steps=1)[0] for e in (0.0, 0.1, 0.2, 0.2)
    ]
    # TRADES has a random start, which differs in each step.
    tolerance = 0.05 if loss is kr.losses.TRADES else 1e-4
    np.testing.assert_allclose(growing, expected, rtol=tolerance)


@pytest.mark.slow_on_jax
def test_a_variable_in_a_sum_and_an_ensemble():
    epsilon = keras.Variable(0.1, trainable=False)
    attack = kr.attacks.Ensemble([kr.attacks.FGSM(epsilon), kr.attacks.FGSM(epsilon, norm="l2")])
    loss = kr.losses.AdversarialTraining(attack) + kr.losses.TRADES(
        kr.attacks.PGD(epsilon, num_steps=2)
    )
    model = kr.RobustModel(make())
    model.compile(keras.optimizers.SGD(0.0), loss)
    values = []
    for value in (0.0, 0.3):
        epsilon.assign(value)
        values.append(model.fit(X, Y, batch_size=32, verbose=0).history["loss"][0])
    assert values[1] > values[0] + 0.1


def test_a_variable_as_step_size():
    epsilon = 0.3
    step = keras.Variable(0.0, trainable=False)
    attack = kr.attacks.PGD(epsilon, step_size=step, num_steps=2, random_start=False)
    model = kr.RobustModel(make())
    model.compile(keras.optimizers.SGD(0.0), kr.losses.AdversarialTraining(attack))
    values = []
    for value in (0.0, 0.1):
        step.assign(value)
        values.append(model.fit(X, Y, batch_size=32, verbose=0).history["loss"][0])
    assert values[1] > values[0]


@pytest.mark.parametrize("epsilon", [lambda: Schedule(0.0, 10, 0.2), lambda: keras.Variable(0.2)],
                         ids=["schedule", "variable"])  # fmt: skip
def test_the_radius_is_saved_with_the_loss(epsilon, tmp_path):
    loss = kr.losses.AdversarialTraining(kr.attacks.PGD(epsilon(), num_steps=2))
    config = keras.saving.serialize_keras_object(loss)
    again = keras.saving.deserialize_keras_object(config)
    assert keras.saving.serialize_keras_object(again) == config
    model = kr.RobustModel(make())
    model.compile("sgd", loss)
    model.fit(X, Y, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    first, second = (m.fit(X, Y, shuffle=False, verbose=0).history["loss"] for m in (model, loaded))
    np.testing.assert_allclose(first, second, rtol=1e-5)


@pytest.mark.slow_on_jax
def test_resumed_training_continues_the_schedule(tmp_path):
    def train(epochs):
        model = kr.RobustModel(make())
        attack = kr.attacks.PGD(Schedule(0.0, 8, 0.3), num_steps=2)
        model.compile(keras.optimizers.SGD(0.1), kr.losses.AdversarialTraining(attack))
        backup = keras.callbacks.BackupAndRestore(tmp_path, delete_checkpoint=False)
        model.fit(X, Y, batch_size=8, epochs=epochs, shuffle=False, verbose=0, callbacks=[backup])
        return model.get_weights()

    train(1)
    resumed = train(3)
    for path in tmp_path.rglob("*"):
        if path.is_file():
            path.unlink()
    uninterrupted = train(3)
    for first, second in zip(resumed, uninterrupted, strict=True):
        np.testing.assert_allclose(first, second, atol=1e-6)


def test_outside_of_training_variables_work_and_schedules_are_an_error():
    epsilon = keras.Variable(0.1)
    attack = kr.attacks.PGD(epsilon, num_steps=3, random_start=False)
    model = make()
    for value in (0.1, 0.2):
        epsilon.assign(value)
        found = attack.run(model, X, Y)
        expected = attack.replace(epsilon=value).run(model, X, Y)
        np.testing.assert_allclose(found.x_adv, expected.x_adv, atol=1e-6)
    scheduled = attack.replace(epsilon=Schedule(0.0, 10, 0.2))
    with pytest.raises(ValueError, match=r"A schedule as `epsilon`.*attack.replace\(epsilon=0.1\)"):
        scheduled.run(model, X, Y)
    with pytest.raises(ValueError, match="A schedule as `epsilon`"):
        kr.evaluate(model, X, Y, [scheduled], verbose=0)


def test_values_out_of_range():
    with pytest.raises(ValueError, match="`epsilon`"):
        kr.attacks.PGD(keras.Variable(-0.1))
    with pytest.raises(ValueError, match="`epsilon` must be a scalar"):
        kr.attacks.PGD(keras.Variable([0.1, 0.2]))
    epsilon = keras.Variable(0.1, trainable=False)
    model = kr.RobustModel(make())
    model.compile("sgd", kr.losses.AdversarialTraining(kr.attacks.FGSM(epsilon)))
    epsilon.assign(-0.1)
    assert np.isnan(model.fit(X, Y, verbose=0).history["loss"][0])
