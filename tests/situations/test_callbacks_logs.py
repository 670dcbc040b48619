"""Callbacks never silently overwrite each other's logs."""

import keras
import numpy as np
import pytest

import keras_robust as kr


@pytest.fixture
def model():
    model = keras.Sequential(
        [keras.Input((8, 8, 1)), keras.layers.Flatten(), keras.layers.Dense(10)]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer="sgd", loss=loss, metrics=["accuracy"])
    return model


def strong(data, **arguments):
    return kr.callbacks.RobustAccuracy(kr.attacks.FGSM(0.5), *data, **arguments)


def weak(data, **arguments):
    return kr.callbacks.RobustAccuracy(kr.attacks.FGSM(0.0), *data, **arguments)


def test_two_callbacks_with_one_name_are_an_error_before_training(model, small_data):
    before = model.get_weights()
    with pytest.raises(ValueError, match="Pass another `name` to this `RobustAccuracy`"):
        model.fit(*small_data, callbacks=[weak(small_data), strong(small_data)], verbose=0)
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_two_callbacks_with_different_names(model, small_data):
    callbacks = [weak(small_data), strong(small_data, name="val_strong")]
    history = model.fit(*small_data, epochs=2, callbacks=callbacks, verbose=0).history
    assert list(history) == ["accuracy", "loss", "val_robust_accuracy", "val_strong"]
    clean = (model.predict(small_data[0], verbose=0).argmax(1) == small_data[1]).mean()
    assert history["val_robust_accuracy"][-1] == pytest.approx(clean)
    assert history["val_strong"][-1] < clean


def test_a_name_of_a_metric_is_an_error(model, small_data):
    with pytest.raises(ValueError, match="logged as 'val_accuracy'"):
        model.fit(
            *small_data,
            validation_data=small_data,
            callbacks=[strong(small_data, name="val_accuracy")],
            verbose=0,
        )


def test_a_callback_can_be_used_in_several_trainings(model, small_data):
    callback = strong(small_data)
    stopped = keras.callbacks.LambdaCallback(on_epoch_begin=lambda epoch, logs: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        model.fit(*small_data, callbacks=[callback, stopped], verbose=0)
    for _ in range(2):
        history = model.fit(*small_data, epochs=2, callbacks=[callback], verbose=0).history
        assert len(history["val_robust_accuracy"]) == 2
