"""Keras's callbacks can monitor robust accuracy."""

import keras
import numpy as np
import pytest

import keras_robust as kr

ATTACK = kr.attacks.PGD(epsilon=0.05, num_steps=3)


def train(make_robust, data, callbacks, epochs=6):
    """Trains three epochs, then reverses training by a negative learning rate."""
    optimizer = keras.optimizers.Adam(0.01)
    robust = make_robust(
        kr.losses.AdversarialTraining(ATTACK), optimizer=optimizer, metrics=["accuracy"]
    )
    schedule = keras.callbacks.LearningRateScheduler(lambda epoch: 0.01 if epoch < 3 else -0.02)
    callbacks = [schedule, kr.callbacks.RobustAccuracy(ATTACK, *data), *callbacks]
    history = robust.fit(
        *data,
        validation_data=data,
        batch_size=16,
        epochs=epochs,
        shuffle=False,
        verbose=0,
        callbacks=callbacks,
    )
    return robust, history.history


def robust_accuracy(model, data):
    return kr.evaluation.robust_accuracy(model, *data, attack=ATTACK)


@pytest.mark.slow_on_jax
def test_checkpoint_keeps_the_most_robust_epoch(make_robust, easy_data, tmp_path):
    checkpoint = keras.callbacks.ModelCheckpoint(
        tmp_path / "best.keras", monitor="val_robust_accuracy", mode="max", save_best_only=True
    )
    robust, history = train(make_robust, easy_data, [checkpoint])
    logged = history["val_robust_accuracy"]
    assert 0.5 < max(logged) == max(logged[1:-1]) > logged[-1]
    assert all(r <= clean + 1e-6 for r, clean in zip(logged, history["val_accuracy"], strict=True))

    best = keras.saving.load_model(tmp_path / "best.keras")
    assert robust_accuracy(best, easy_data) == pytest.approx(max(logged))
    assert robust_accuracy(robust, easy_data) == pytest.approx(logged[-1])


@pytest.mark.slow_on_jax
def test_early_stopping_restores_the_most_robust_epoch(make_robust, easy_data):
    stopping = keras.callbacks.EarlyStopping(
        monitor="val_robust_accuracy", mode="max", patience=1, restore_best_weights=True
    )
    robust, history = train(make_robust, easy_data, [stopping], epochs=20)
    logged = history["val_robust_accuracy"]
    best = int(np.argmax(logged))
    assert 0 < best < len(logged) - 1 < 10
    assert robust_accuracy(robust, easy_data) == pytest.approx(logged[best])
