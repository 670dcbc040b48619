"""`LazyImages` gives access to a data set like an array, and holds one batch at a time."""

import collections
import weakref

import keras
import numpy as np
import pytest
from data_sets import tf_data
from keras import ops
from test_arrays import FINITE, DataLoader, X, Y, generator

import keras_robust as kr
from keras_robust.model.arrays import as_images
from keras_robust.model.images import LazyImages, content_of

INDICES = {
    "an image": 5,
    "one from the end": -2,
    "a slice": slice(3, 17),
    "in order": np.arange(4, 20),
    "filled up": np.array([21, 22, 23, 23, 23]),
    "in any order": np.random.default_rng(1).permutation(24),
    "none": np.array([], int),
}


class Alive:
    """Counts the watched arrays that have not been freed, and their maximum so far."""

    def __init__(self):
        self.count = self.maximum = 0

    def watch(self, array):
        self.count += 1
        self.maximum = max(self.maximum, self.count)
        weakref.finalize(array, self._freed)
        return array

    def _freed(self):
        self.count -= 1


class Pixels(keras.utils.PyDataset):
    """Generates images of one pixel on demand, and counts the requests."""

    def __init__(self, count, size):
        super().__init__()
        self.count, self.size, self.alive = count, size, Alive()
        self.requests = collections.Counter()

    def __len__(self):
        return -(-self.count // self.size)

    def __getitem__(self, number):
        self.requests[number] += 1
        rows = np.arange(self.size * number, min(self.size * (number + 1), self.count))
        images = ((rows + 0.5) / self.count).astype("float32").reshape(-1, 1, 1, 1)
        return self.alive.watch(images), (rows >= self.count / 2).astype("int32")


class InOrder:
    """Allows access in order only, like `tf.data` and torch's `DataLoader`."""

    def __init__(self, pixels):
        self.pixels = pixels

    def __iter__(self):
        return map(self.pixels.__getitem__, range(len(self.pixels)))


def threshold(x):
    z = 10 * (x[:, 0, 0, 0] - 0.5)
    return ops.stack([-z, z], axis=1)


@pytest.mark.parametrize("make", FINITE.values(), ids=FINITE)
def test_images_behave_like_an_array(make):
    arguments, options = make()
    images, labels = as_images(*arguments, **options)
    assert len(images) == len(labels) == 24
    assert (images.shape, images.ndim, images.size) == (X.shape, X.ndim, X.size)
    assert images.dtype == X.dtype
    assert (images.min(), images.max()) == (X.min(), X.max())
    assert content_of(images) == content_of(X)
    for index in INDICES.values():
        np.testing.assert_array_equal(images[index], X[index])
    with pytest.raises(IndexError):
        images[24]


@pytest.mark.parametrize(
    ("make", "steps"),
    [(generator, 3), (lambda: tf_data(X, Y).shuffle(24).batch(5), None)],
    ids=["generator", "shuffled tf.data"],
)
def test_generators_and_shuffled_data_are_held_in_memory(make, steps):
    images, labels = as_images(make(), steps=steps)
    assert isinstance(images, np.ndarray)
    assert len(images) == 24
    for image, label in zip(images, labels, strict=True):
        assert Y[abs(X - image).max(axis=(1, 2, 3)).argmin()] == label


@pytest.mark.parametrize("form", [lambda pixels: pixels, InOrder], ids=["any order", "in order"])
def test_data_that_change_later_are_an_error(form):
    pixels = Pixels(200, 10)
    images, _ = as_images(form(pixels))
    assert isinstance(images, LazyImages)
    for count in (150, 90):  # Different images, and fewer batches.
        pixels.count = count
        with pytest.raises(ValueError, match=r"same images in the same order.* 12 has changed"):
            images[120:130]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: np.where(x > 0.9, np.nan, x), f"finite. Received: {(X > 0.9).sum()} NaN"),
        (lambda x: 255 * x, f"x.max\\(\\)={255 * X.max():g}"),
        (lambda x: (255 * x).astype("uint8"), "must be floating"),
    ],
    ids=["NaN", "0 to 255", "integers"],
)
def test_bad_images_in_an_evaluation(change, message):
    model = keras.Sequential(
        [keras.Input((6, 6, 1)), keras.layers.Flatten(), keras.layers.Dense(3)]
    )
    with pytest.raises(ValueError, match=message):
        kr.evaluate(model, DataLoader(change(X)), attacks=kr.attacks.FGSM(0.1), verbose=0)


def test_images_of_several_sizes_are_an_error():
    class SeveralSizes(DataLoader):
        def __iter__(self):
            return ([x[:, number:], y] for number, (x, y) in enumerate(super().__iter__()))

    with pytest.raises(ValueError, match=r"of one size.*\(4, 6, 1\), \(5, 6, 1\), \(6, 6, 1\)"):
        as_images(SeveralSizes())


def test_data_that_can_only_be_read_once_are_an_error():
    tf = pytest.importorskip("tensorflow", reason="needs `tf.data`")
    once = iter([(X[:8], Y[:8]), (X[8:], Y[8:])])
    signature = tf.TensorSpec((None, 6, 6, 1)), tf.TensorSpec((None,), "int64")
    data = tf.data.Dataset.from_generator(lambda: once, output_signature=signature)
    for _ in range(2):
        with pytest.raises(ValueError, match="at least one pair of images and labels"):
            as_images(data)


@pytest.mark.slow
@pytest.mark.parametrize("form", [lambda pixels: pixels, InOrder], ids=["any order", "in order"])
def test_an_evaluation_holds_one_batch_at_a_time(form, tmp_path, monkeypatch):
    pixels, copies = Pixels(1000, 50), Alive()
    attacks = [kr.attacks.FGSM(0.1), kr.attacks.PGD(0.2, num_steps=2)]
    options = {"attacks": attacks, "batch_size": 40, "checks": False, "verbose": 0}
    x = ((np.arange(1000) + 0.5) / 1000).astype("float32").reshape(-1, 1, 1, 1)
    y = (np.arange(1000) >= 500).astype("int32")
    expected = kr.evaluate(threshold, x, y, **options)

    get = LazyImages.__getitem__
    monkeypatch.setattr(
        LazyImages, "__getitem__", lambda self, index: copies.watch(get(self, index))
    )
    report = kr.evaluate(threshold, form(pixels), output=tmp_path, **options)
    assert pixels.alive.maximum == 1
    assert copies.maximum <= 2  # JAX may hold a batch until its results are freed.
    # One pass each to check, to classify, and for two attacks.
    assert max(pixels.requests[number] for number in range(8, 20)) <= 4
    assert {**report.to_dict(), "date": None} == {**expected.to_dict(), "date": None}
    assert 0.59 < report.accuracy("worst case") < 0.61

    # The evaluation can be resumed with arrays of the same images.
    again = kr.evaluate(threshold, x, y, output=tmp_path, resume=True, **options)
    assert {**again.to_dict(), "date": None} == {**expected.to_dict(), "date": None}


@pytest.mark.slow_on_jax
def test_robust_accuracy_and_checks_hold_one_batch_at_a_time():
    attack, pixels = kr.attacks.FGSM(0.1), Pixels(1000, 50)
    assert kr.evaluation.robust_accuracy(threshold, pixels, attack=attack) == 0.8
    results = kr.evaluation.check(threshold, InOrder(pixels), attack=attack, verbose=0)
    assert pixels.alive.maximum == 1
    assert any(result.passed for result in results)
