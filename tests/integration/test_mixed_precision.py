"""Losses train in float16 with float32 weights."""

import keras
import numpy as np
import pytest

import keras_robust as kr
from keras_robust.model.classifier import Classifier


@pytest.fixture
def mixed_precision():
    keras.config.set_dtype_policy("mixed_float16")  # Reset after each test.
    yield
    keras.config.set_dtype_policy("float32")


@pytest.mark.usefixtures("mixed_precision")
def test_fit_scales_the_loss_and_trains(make_base, make_robust, loss, distance, small_data):
    robust = make_robust(loss, make_base(batch_norm=True))
    robust.fit(*small_data, batch_size=32, epochs=4, shuffle=False, verbose=0)

    assert keras.backend.standardize_dtype(robust(small_data[0]).dtype) == "float16"
    assert isinstance(robust.optimizer, keras.optimizers.LossScaleOptimizer)
    # Steps whose gradient overflows are skipped until the loss scale is small enough.
    assert 4 <= robust.optimizer.iterations.numpy() <= 8
    assert all(np.isfinite(weight).all() for weight in robust.get_weights())
    assert distance(robust, make_base(batch_norm=True)) > 0.01


@pytest.mark.slow_on_jax
@pytest.mark.usefixtures("mixed_precision")
def test_trains_to_nearly_the_same_weights_as_float32(
    make_base, make_robust, loss, distance, small_data
):
    arguments = {"batch_size": 32, "epochs": 2, "shuffle": False, "verbose": 0}
    mixed = make_robust(loss)
    mixed.fit(*small_data, **arguments)
    keras.config.set_dtype_policy("float32")
    full = make_robust(loss)
    full.fit(*small_data, **arguments)
    assert distance(mixed, full) < 0.05 * distance(full, make_base())


@pytest.mark.usefixtures("mixed_precision")
@pytest.mark.parametrize("scale", [0.01, 1, 100], ids=["unsure", "normal", "certain"])
def test_attack_moves_every_image(make_base, small_data, scale):
    # Gradients that underflow in float16 would leave images, or parts of them, unchanged.
    x, _ = small_data
    base = make_base()
    kernel, bias = base.layers[-1].get_weights()
    base.layers[-1].set_weights([scale * kernel, bias])
    y = base.predict(x, verbose=0).argmax(axis=1)
    attack = kr.attacks.PGD(epsilon=0.1, num_steps=3, random_start=False)
    function = Classifier(base).compiled("perturb", lambda base, x: attack.perturb(base, x, y, 0))
    x_adv = keras.ops.convert_to_numpy(function(x))
    assert x_adv.dtype == "float32"
    moved = (x_adv != x).reshape(64, -1)
    assert moved.any(axis=1).all()
    assert moved.mean() > 0.98
    assert (abs(x_adv - x) > 0.09).mean() > 0.5
