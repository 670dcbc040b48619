"""Clones of wrapped classifiers and wrappers."""

import keras

import keras_robust as kr


def test_clone_trains_independently(make_base, make_robust, loss, assert_same_weights, small_data):
    robust = make_robust(loss)
    before = robust.get_weights()
    clone = keras.models.clone_model(robust.base_model)
    assert all(a is not b for a, b in zip(clone.weights, robust.weights, strict=True))
    clone.set_weights(before)

    other = make_robust(loss, clone)
    arguments = {"batch_size": 32, "shuffle": False, "verbose": 0}
    other.fit(*small_data, **arguments)
    assert_same_weights(robust, before, rtol=0, atol=0)
    robust.fit(*small_data, **arguments)
    assert_same_weights(robust, other)


def test_wrapper_is_restored_from_its_configuration(
    make_robust, loss, assert_same_weights, small_data
):
    robust = make_robust(loss)
    copy = kr.RobustModel.from_config(robust.get_config())
    copy.set_weights(robust.get_weights())
    copy.compile_from_config(robust.get_compile_config())
    for model in (robust, copy):
        model.fit(*small_data, batch_size=32, shuffle=False, verbose=0)
    assert_same_weights(robust, copy)
