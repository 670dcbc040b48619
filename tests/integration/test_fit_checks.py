"""`fit` rejects data and models that cannot be attacked, before training."""

import keras
import numpy as np
import pytest
from data_sets import pairs

import keras_robust as kr


class Recorder(keras.callbacks.Callback):
    """Records whether training has started."""

    has_started = False

    def on_train_begin(self, logs=None):
        self.has_started = True


def assert_rejected(robust, match, *data):
    before = robust.get_weights()
    recorder = Recorder()
    with pytest.raises(ValueError, match=match):
        robust.fit(*data, verbose=0, callbacks=[recorder])
    assert not recorder.has_started
    for old, new in zip(before, robust.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def with_nan(x, y):
    x = x.copy()
    x[50, 3, 3] = np.nan
    return x, y


BAD_DATA = {
    "above_bounds": (lambda x, y: (255 * x, y), "inside the attack's `bounds`"),
    "below_bounds": (lambda x, y: (2 * x - 1, y), "inside the attack's `bounds`"),
    "nan": (with_nan, "must be finite"),
    "integers": (lambda x, y: ((255 * x).astype("uint8"), y), "must be floating"),
    "label_too_large": (lambda x, y: (x, y + 1), "must be from 0 to 9"),
    "label_negative": (lambda x, y: (x, y - 1), "must be from 0 to 9"),
    "one_hot_of_11": (lambda x, y: (x, keras.utils.to_categorical(y, 11)), "match the model's 10"),
}


@pytest.mark.parametrize("case", BAD_DATA)
def test_bad_arrays(make_robust, loss, small_data, case):
    corrupt, match = BAD_DATA[case]
    assert_rejected(make_robust(loss), match, *corrupt(*small_data))


@pytest.mark.parametrize("case", BAD_DATA)
def test_bad_datasets(make_robust, attack, small_data, case):
    corrupt, match = BAD_DATA[case]
    dataset = pairs(*corrupt(*small_data)).batch(64)
    assert_rejected(make_robust(kr.losses.AdversarialTraining(attack)), match, dataset)


def test_softmax_where_logits_are_expected(make_base, make_robust, loss, small_data):
    base = keras.Sequential([make_base(), keras.layers.Softmax()])
    assert_rejected(make_robust(loss, base), "from_logits=True", *small_data)


def test_logits_where_probabilities_are_expected(make_robust, small_data):
    attack = kr.attacks.PGD(epsilon=0.1, from_logits=False)
    loss = kr.losses.AdversarialTraining(attack)
    assert_rejected(make_robust(loss), "from_logits=False", *small_data)


def test_empty_dataset(make_robust, loss, small_data):
    dataset = pairs(*small_data).batch(64).take(0)
    assert_rejected(make_robust(loss), "must not be empty", dataset)


def test_probabilities_with_from_logits_false_are_accepted(make_base, make_robust, small_data):
    base = keras.Sequential([make_base(), keras.layers.Softmax()])
    attack = kr.attacks.PGD(epsilon=0.1, num_steps=2, from_logits=False)
    robust = make_robust(kr.losses.AdversarialTraining(attack), base)
    losses = robust.fit(*small_data, batch_size=64, epochs=3, verbose=0).history["loss"]
    assert losses[-1] < losses[0]


def test_plain_losses_take_any_images(make_robust, small_data):
    x, y = small_data
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    make_robust(loss).fit(4 * x - 2, y, verbose=0)
