"""Losses train sequential, functional, subclassed and unbuilt classifiers."""

import keras
import numpy as np
import pytest

import keras_robust as kr


@keras.saving.register_keras_serializable(package="keras_robust_tests")
class Subclassed(keras.Model):
    """A classifier with a constructor argument, dropout and batch normalization."""

    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.units = units
        self.flatten = keras.layers.Flatten()
        self.hidden = keras.layers.Dense(units, activation="tanh")
        self.normalize = keras.layers.BatchNormalization()
        self.dropout = keras.layers.Dropout(0.1)
        self.head = keras.layers.Dense(10)

    def call(self, inputs, training=None):
        hidden = self.normalize(self.hidden(self.flatten(inputs)), training=training)
        return self.head(self.dropout(hidden, training=training))

    def get_config(self):
        return {**super().get_config(), "units": self.units}


def sequential():
    return keras.Sequential(
        [keras.Input((8, 8, 1)), keras.layers.Flatten(), keras.layers.Dense(10)]
    )


def unbuilt():
    return keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(10)])


def functional():
    inputs = keras.Input((8, 8, 1))
    hidden = keras.layers.Conv2D(4, 3, activation="relu")(inputs)
    hidden = keras.layers.concatenate(
        [keras.layers.GlobalAveragePooling2D()(hidden), keras.layers.Flatten()(inputs)]
    )
    return keras.Model(inputs, keras.layers.Dense(10)(hidden))


def subclassed():
    return Subclassed(8)


KINDS = [sequential, unbuilt, functional, subclassed]


@pytest.mark.slow
@pytest.mark.parametrize("make", KINDS)
def test_training_and_saving(make, loss, small_data, tmp_path):
    x, y = small_data
    base = make()
    robust = kr.RobustModel(base)
    robust.compile(keras.optimizers.SGD(0.1), loss)
    losses = robust.fit(x, y, epochs=4, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
    assert robust.base_model is base
    assert len(robust.weights) == len(base.weights) > 0

    robust.save(tmp_path / "robust.keras")
    loaded = keras.saving.load_model(tmp_path / "robust.keras")
    assert type(loaded.base_model) is type(base)
    expected = robust.predict(x, verbose=0)
    np.testing.assert_allclose(loaded.predict(x, verbose=0), expected, rtol=1e-6)
    loaded.fit(x, y, verbose=0)
    assert loaded.optimizer.iterations.numpy() == 5 * 2


@pytest.mark.slow
@pytest.mark.parametrize("make", [unbuilt, subclassed])
def test_unbuilt_models_are_built_on_first_use(make, attack, small_data):
    x, y = small_data
    loss = kr.losses.AdversarialTraining(attack)

    def fresh():
        robust = kr.RobustModel(make())
        robust.compile("sgd", loss)
        return robust

    for first in (
        lambda model: model.train_on_batch(x, y),
        lambda model: model.evaluate(x, y, verbose=0),
        lambda model: model.predict(x, verbose=0),
        lambda model: model(x),
        lambda model: model.build((None, 8, 8, 1)),
        lambda model: attack(model, x, y, seed=0),
        lambda model: kr.evaluation.robust_accuracy(model, x, y, attack=attack),
    ):
        robust = fresh()
        assert not robust.built
        first(robust)
        assert len(robust.trainable_weights) > 1
        robust.fit(x, y, verbose=0)
        assert robust.predict(x, verbose=0).shape == (64, 10)


def test_frozen_layers_are_not_trained(make_base, loss, small_data):
    base = make_base()
    base.layers[1].trainable = False
    before = [layer.get_weights() for layer in base.layers]
    robust = kr.RobustModel(base)
    robust.compile("sgd", loss)
    robust.fit(*small_data, verbose=0)
    np.testing.assert_array_equal(base.layers[1].get_weights()[0], before[1][0])
    assert abs(base.layers[2].get_weights()[0] - before[2][0]).max() > 0
