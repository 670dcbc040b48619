"""Robust models can be saved and loaded in Keras's format."""

import keras
import numpy as np
import pytest

import keras_robust as kr


def make_compiled(make_robust, loss):
    return make_robust(loss, optimizer=keras.optimizers.Adam(0.01), metrics=["accuracy"])


@pytest.mark.slow
def test_training_continues_after_loading(
    make_robust, loss, assert_same_weights, distance, small_data, tmp_path
):
    arguments = {"batch_size": 32, "shuffle": False, "verbose": 0}
    uninterrupted = make_compiled(make_robust, loss)
    losses = uninterrupted.fit(*small_data, epochs=4, **arguments).history["loss"]

    first = make_compiled(make_robust, loss)
    first.fit(*small_data, epochs=2, **arguments)
    first.save(tmp_path / "robust.keras")
    loaded = keras.saving.load_model(tmp_path / "robust.keras")
    # This restores the optimizer's moments and step counter, and so the noise.
    assert_same_weights(loaded, first, rtol=0, atol=0)
    history = loaded.fit(*small_data, epochs=2, **arguments).history
    assert_same_weights(loaded, uninterrupted)
    np.testing.assert_allclose(history["loss"], losses[2:], rtol=1e-5)
    assert distance(uninterrupted, first) > 0.01


def test_loss_is_restored_with_its_configuration(make_robust, small_data, tmp_path):
    attack = kr.attacks.PGD(
        epsilon=0.125, step_size=0.03, num_steps=4, norm="l2", bounds=(-1.0, 2.0)
    )
    loss = kr.losses.TRADES(
        attack, beta=2.5, start_stddev=0.02, loss="sparse_categorical_crossentropy", name="mine"
    )
    robust = make_compiled(make_robust, loss)
    robust.fit(*small_data, verbose=0)
    robust.save(tmp_path / "robust.keras")
    loaded = keras.saving.load_model(tmp_path / "robust.keras")
    assert isinstance(loaded, kr.RobustModel)
    assert loaded.seed == 3
    assert isinstance(loaded.loss, kr.losses.TRADES)
    assert (loaded.loss.beta, loaded.loss.start_stddev) == (2.5, 0.02)
    assert (loaded.loss.loss, loaded.loss.name) == ("sparse_categorical_crossentropy", "mine")
    assert vars(loaded.loss.attack) == vars(attack)


@pytest.mark.slow
def test_weights_file_includes_the_optimizer(
    make_robust, loss, assert_same_weights, small_data, tmp_path
):
    arguments = {"batch_size": 32, "shuffle": False, "verbose": 0}
    uninterrupted = make_compiled(make_robust, loss)
    uninterrupted.fit(*small_data, epochs=2, **arguments)
    uninterrupted.save_weights(tmp_path / "middle.weights.h5")
    other = make_compiled(make_robust, loss)
    other.fit(*small_data, epochs=1, **arguments)
    other.load_weights(tmp_path / "middle.weights.h5")
    uninterrupted.fit(*small_data, epochs=1, **arguments)
    other.fit(*small_data, epochs=1, **arguments)
    assert_same_weights(uninterrupted, other)


@pytest.mark.slow
def test_base_model_can_be_saved_without_the_wrapper(make_robust, loss, small_data, tmp_path):
    x, y = small_data
    robust = make_compiled(make_robust, loss)
    robust.fit(x, y, verbose=0)
    robust.base_model.save(tmp_path / "base.keras")
    deployed = keras.saving.load_model(tmp_path / "base.keras")

    assert type(deployed) is keras.Sequential
    assert not any(isinstance(layer, kr.RobustModel) for layer in deployed._flatten_layers())
    expected = robust.predict(x, verbose=0)
    np.testing.assert_allclose(deployed.predict(x, verbose=0), expected, rtol=1e-6)
    np.testing.assert_allclose(robust.base_model.predict(x, verbose=0), expected, rtol=1e-6)
    # The file has an ordinary model, which can be trained further.
    deployed.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    deployed.fit(x, y, verbose=0)


@pytest.mark.slow
@pytest.mark.parametrize("compiled", [False, True])
def test_loaded_model_has_the_same_predictions(make_robust, loss, small_data, tmp_path, compiled):
    x, y = small_data
    robust = make_compiled(make_robust, loss)
    robust.fit(x, y, verbose=0)
    robust.save(tmp_path / "robust.keras")
    loaded = keras.saving.load_model(tmp_path / "robust.keras", compile=compiled)
    assert loaded.compiled == compiled
    np.testing.assert_allclose(
        loaded.predict(x, verbose=0), robust.predict(x, verbose=0), rtol=1e-6
    )
    if compiled:
        np.testing.assert_allclose(
            loaded.evaluate(x, y, verbose=0), robust.evaluate(x, y, verbose=0), rtol=1e-5
        )
