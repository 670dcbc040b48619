"""`fit` takes images and labels in all of Keras's forms."""

import keras
import numpy as np
import pytest
from data_sets import pairs, tf_data


class Batches(keras.utils.PyDataset):
    """Arrays in batches of 24."""

    def __init__(self, *arrays):
        super().__init__()
        self.arrays = arrays

    def __len__(self):
        return -(-len(self.arrays[0]) // 24)

    def __getitem__(self, index):
        return tuple(array[index * 24 : (index + 1) * 24] for array in self.arrays)


def as_dataset(*arrays):
    return tf_data(*arrays).batch(24)


def as_generator(*arrays):
    batches = Batches(*arrays)
    return (batches[index] for index in range(len(batches)))


@pytest.mark.slow
@pytest.mark.parametrize("convert", [as_dataset, Batches, as_generator])
def test_batches_with_weights_equal_arrays(
    make_robust, loss, assert_same_weights, small_data, convert
):
    x, y = small_data
    sample_weight = np.linspace(0, 2, 64).astype("float32")
    from_arrays, from_batches = make_robust(loss), make_robust(loss)
    arguments = {"shuffle": False, "verbose": 0}
    from_arrays.fit(x, y, batch_size=24, sample_weight=sample_weight, **arguments)
    # A generator has no length.
    from_batches.fit(convert(x, y, sample_weight), steps_per_epoch=3, **arguments)
    assert_same_weights(from_arrays, from_batches)


def test_pairs_equal_arrays(make_robust, loss, assert_same_weights, small_data):
    from_arrays, from_dataset = make_robust(loss), make_robust(loss)
    from_arrays.fit(*small_data, batch_size=24, shuffle=False, verbose=0)
    from_dataset.fit(pairs(*small_data).batch(24), shuffle=False, verbose=0)
    assert_same_weights(from_arrays, from_dataset)


@pytest.mark.slow_on_jax
def test_one_hot_labels_equal_integers(make_robust, loss, assert_same_weights, small_data):
    x, y = small_data
    integers, one_hot, columns = make_robust(loss), make_robust(loss), make_robust(loss)
    integers.fit(x, y, shuffle=False, verbose=0)
    one_hot.fit(x, keras.utils.to_categorical(y, 10), shuffle=False, verbose=0)
    columns.fit(x, y[:, None], shuffle=False, verbose=0)
    assert_same_weights(integers, one_hot)
    assert_same_weights(integers, columns)


def test_last_batch_of_another_size(make_robust, loss, small_data):
    # The checks have only seen the size of the first batch.
    x, y = small_data
    robust = make_robust(loss)
    robust.fit(pairs(x[:25], y[:25]).batch(24), shuffle=False, verbose=0)
    assert robust.optimizer.iterations.numpy() == 2
