"""`ArrayDataset` has the methods of `tf.data` for arrays in memory."""

import keras
import numpy as np
import pytest

import keras_robust as kr
from keras_robust.model.arrays import as_arrays

RNG = np.random.default_rng(0)
X, Y = RNG.random((23, 4, 4, 1), "float32"), np.arange(23)


def dataset():
    return kr.datasets.ArrayDataset(X, Y)


def halved(x, y):
    return x / 2, y + 100


def labels(data):
    return [np.asarray(y).tolist() for _, y in data]


CHAINS = {
    "batch": lambda d: d.batch(5),
    "drop": lambda d: d.batch(5, drop_remainder=True),
    "take then batch": lambda d: d.take(7).batch(3),
    "batch then take": lambda d: d.batch(3).take(2),
    "take none": lambda d: d.take(0),
    "take more": lambda d: d.take(100),
    "skip": lambda d: d.skip(20),
    "skip batches": lambda d: d.batch(4).skip(3),
    "skip all": lambda d: d.skip(30),
    "map": lambda d: d.map(halved).batch(4),
    "map batches": lambda d: d.batch(4).map(halved),
}


@pytest.mark.parametrize("chain", CHAINS.values(), ids=CHAINS)
def test_elements_agree_with_tf_data(chain):
    tf = pytest.importorskip("tensorflow", reason="compares with tf.data")
    found = list(chain(dataset()).as_numpy_iterator())
    expected = list(chain(tf.data.Dataset.from_tensor_slices((X, Y))).as_numpy_iterator())
    assert len(found) == len(expected) == len(chain(dataset()))
    for ours, theirs in zip(found, expected, strict=True):
        for one, other in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(one, other)


def test_each_epoch_has_a_new_order_that_the_seed_determines():
    data, same = (dataset().shuffle(23, seed=3).batch(5) for _ in range(2))
    epochs = []
    for _ in range(3):
        epochs.append([label for batch in labels(data) for label in batch])
        assert labels(same) == labels(data)
        for x, y in data:
            np.testing.assert_array_equal(x, X[y])
        data.on_epoch_end()
        same.on_epoch_end()
    assert all(sorted(epoch) == list(range(23)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in [*epochs, range(23)]}) == 4


def test_batches_may_be_shuffled_and_the_first_taken():
    data = dataset().batch(5, drop_remainder=True).shuffle(seed=0).take(2)
    assert all(y[0] % 5 == 0 and y == list(range(y[0], y[0] + 5)) for y in labels(data))
    assert len(labels(data)) == 2


def test_without_a_seed_the_order_depends_on_the_global_seed():
    orders = []
    for seed in (1, 1, 2):
        keras.utils.set_random_seed(seed)
        orders.append(labels(dataset().shuffle().batch(23)))
    assert orders[0] == orders[1] != orders[2]


def test_as_arrays_takes_batched_and_unbatched_data():
    for data in (dataset(), dataset().batch(5), dataset().take(23).map(lambda x, y: (x, y))):
        x, y = as_arrays(data)
        np.testing.assert_array_equal(x, X)
        np.testing.assert_array_equal(y, Y)
    assert as_arrays(dataset().batch(5), steps=2)[0].shape == (10, 4, 4, 1)


def test_fit_gives_the_same_loss_as_on_arrays():
    y, histories = Y % 3, []
    for data in ((X, y), (kr.datasets.ArrayDataset(X, y).batch(8),)):
        keras.utils.set_random_seed(0)
        model = kr.RobustModel(keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(3)]))
        model.compile("sgd", kr.losses.AdversarialTraining(kr.attacks.FGSM(0.1)))
        fit = model.fit(*data, batch_size=8 if len(data) > 1 else None, shuffle=False, epochs=3,
                        verbose=0)  # fmt: skip
        histories.append(fit.history["loss"])
    np.testing.assert_allclose(*histories, rtol=1e-5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: kr.datasets.ArrayDataset(X, Y[:5]), "Received: 23 images, 5 labels"),
        (lambda: kr.datasets.ArrayDataset(X[:0], Y[:0]), "at least one"),
        (lambda: dataset().batch(0), "`batch_size`"),
        (lambda: dataset().take(-1), "`count`"),
        (lambda: list(dataset().map(lambda x, y: x)), "must return a pair of images and labels"),
        (lambda: dataset().batch(2).batch(2), "batched only once"),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(ValueError, match=message):
        make()
