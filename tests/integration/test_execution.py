"""Training does not depend on how Keras runs the steps."""

import numpy as np
import pytest

import keras_robust as kr


def train(model, data, **arguments):
    model.fit(*data, batch_size=24, epochs=1, shuffle=False, verbose=0, **arguments)
    return model


@pytest.mark.slow_on_jax
@pytest.mark.parametrize("arguments", [{"run_eagerly": True}, {"jit_compile": False}])
def test_eager_and_graph_equal_default(
    make_base, make_robust, loss, assert_same_weights, distance, small_data, arguments
):
    model = train(make_robust(loss), small_data)
    other = train(make_robust(loss, **arguments), small_data)
    assert_same_weights(model, other, atol=1e-4)
    assert distance(model, make_base()) > 0.01


@pytest.mark.slow
def test_xla_equals_eager(make_robust, assert_same_weights, small_data):
    # No random start, because XLA on TensorFlow draws different numbers from the same seed.
    loss = kr.losses.AdversarialTraining(
        kr.attacks.PGD(epsilon=2.0, norm="l2", num_steps=3, random_start=False)
    )
    model = train(make_robust(loss, jit_compile=True), small_data)
    assert_same_weights(model, train(make_robust(loss, run_eagerly=True), small_data), atol=1e-4)


@pytest.mark.slow_on_jax
@pytest.mark.gpu
def test_steps_per_execution(make_robust, loss, assert_same_weights, small_data):
    # 3 batches of 24, 24 and 16 images. 3 is not a multiple of 2.
    one = train(make_robust(loss), small_data)
    two = train(make_robust(loss, steps_per_execution=2), small_data)
    assert_same_weights(one, two)
    assert two.optimizer.iterations.numpy() == 3


@pytest.mark.gpu
@pytest.mark.slow_on_jax
def test_train_on_batch(make_robust, loss, assert_same_weights, small_data):
    x, y = small_data
    fitted = train(make_robust(loss, metrics=["accuracy"]), small_data)
    by_batch = make_robust(loss, metrics=["accuracy"])
    logs = [
        by_batch.train_on_batch(x[i : i + 24], y[i : i + 24], return_dict=True)
        for i in range(0, 64, 24)
    ]
    assert_same_weights(fitted, by_batch)
    for name in ("loss", "accuracy"):
        mean = np.average([log[name] for log in logs], weights=[24, 24, 16])
        np.testing.assert_allclose(fitted.history.history[name], mean, rtol=1e-5)


@pytest.mark.gpu
def test_validation_split_trains_on_the_rest(make_robust, loss, assert_same_weights, small_data):
    x, y = small_data
    split = train(make_robust(loss), small_data, validation_split=0.25)
    rest = train(make_robust(loss), (x[:48], y[:48]))
    assert_same_weights(split, rest)
    np.testing.assert_allclose(
        split.history.history["val_loss"], rest.evaluate(x[48:], y[48:], verbose=0), rtol=1e-5
    )
