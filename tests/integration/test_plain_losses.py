"""Model losses need `kr.RobustModel`, which also takes plain losses."""

import keras
import pytest

import keras_robust as kr


@pytest.mark.parametrize("work", ["fit", "evaluate", "train_on_batch"])
def test_plain_model_rejects_a_model_loss(make_base, make_robust, loss, small_data, work):
    model = make_base()
    model.compile("sgd", loss)
    with pytest.raises(ValueError, match="RobustModel"):
        getattr(model, work)(*small_data)
    # The model is not damaged, and can be wrapped as the message says.
    make_robust(loss, model).fit(*small_data, verbose=0)


@pytest.mark.parametrize("name", ["sparse_categorical_crossentropy", None])
def test_plain_loss_trains_as_without_the_wrapper(
    make_base, make_robust, assert_same_weights, small_data, name
):
    loss = name or keras.losses.SparseCategoricalCrossentropy(from_logits=True)

    def base():
        return keras.Sequential([make_base(), *([keras.layers.Softmax()] if name else [])])

    robust, plain = make_robust(loss, base()), base()
    plain.compile(keras.optimizers.SGD(0.5), loss)
    for model in (robust, plain):
        model.fit(*small_data, batch_size=32, shuffle=False, verbose=0)
    assert_same_weights(robust, plain)


def test_model_loss_without_a_training_step_is_an_error(make_robust, loss, small_data):
    x, y = small_data
    robust = make_robust(loss)
    with pytest.raises(ValueError, match="must be prepared in `train_step`"):
        robust.compute_loss(x, y, robust(x), training=True)


def test_wrapping_twice_is_an_error(make_robust, loss):
    with pytest.raises(ValueError, match="not already wrapped"):
        kr.RobustModel(make_robust(loss))
    with pytest.raises(ValueError, match="must be a Keras model"):
        kr.RobustModel(keras.layers.Dense(10))
