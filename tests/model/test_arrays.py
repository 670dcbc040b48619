"""All forms of data that `fit` takes are read and checked in the same way."""

import sys
import types

import keras
import numpy as np
import pytest
from data_sets import tf_data as slices

import keras_robust as kr
from keras_robust.model.arrays import as_arrays, first_batch

rng = np.random.default_rng(0)
X, Y = rng.random((24, 6, 6, 1), "float32"), rng.integers(0, 3, 24)
ONE_HOT = np.eye(3, dtype="float32")[Y]
ATTACK = kr.attacks.FGSM(0.1)


class Sequence(keras.utils.PyDataset):
    def __init__(self, x=X, y=Y, size=8, **kwargs):
        super().__init__(**kwargs)
        self.x, self.y, self.size = x, y, size

    def __len__(self):
        return -(-len(self.x) // self.size)

    def __getitem__(self, number):
        rows = slice(self.size * number, self.size * (number + 1))
        return self.x[rows], self.y[rows]


class Endless(Sequence):
    @property
    def num_batches(self):
        return None

    def __getitem__(self, number):
        return super().__getitem__(number % 3)


def generator(x=X, y=Y, size=8):
    while True:
        for row in range(0, len(x), size):
            yield x[row : row + size], y[row : row + size]


class DataLoader:
    """Imitates a torch `DataLoader`: iterable repeatedly, with batches as lists."""

    def __init__(self, x=X, y=Y):
        self.x, self.y = x, y

    def __len__(self):
        return 3

    def __iter__(self):
        for row in range(0, 24, 8):
            yield [self.x[row : row + 8], self.y[row : row + 8]]


FINITE = {
    "arrays": lambda: ((X, Y), {}),
    "lists of one": lambda: (([X], [Y]), {}),
    "tensors": lambda: ((keras.ops.convert_to_tensor(X), keras.ops.convert_to_tensor(Y)), {}),
    "one-hot": lambda: ((X, ONE_HOT), {}),
    "column of labels": lambda: ((X, Y[:, None]), {}),
    "batched": lambda: ((slices(X, Y).batch(7),), {}),
    "batched, drop_remainder": lambda: ((slices(X, Y).batch(6, drop_remainder=True),), {}),
    "batches of six one-hot": lambda: ((slices(X, ONE_HOT).batch(6, drop_remainder=True),), {}),
    "unbatched": lambda: ((slices(X, Y),), {}),
    "unbatched, one-hot": lambda: ((slices(X, ONE_HOT),), {}),
    "unbatched, labels of shape (1,)": lambda: ((slices(X, Y[:, None]),), {}),
    "with weights": lambda: ((slices(X, Y, np.ones(24)).batch(7),), {}),
    "dicts of one": lambda: ((slices({"image": X}, {"label": Y}).batch(7),), {}),
    "ArrayDataset": lambda: ((kr.datasets.ArrayDataset(X, Y).batch(7),), {}),
    "PyDataset": lambda: ((Sequence(),), {}),
    "DataLoader": lambda: ((DataLoader(),), {}),
    "generator": lambda: ((generator(),), {"steps": 3}),
    "endless data set": lambda: ((slices(X, Y).batch(8).repeat(),), {"steps": 3}),
    "endless PyDataset": lambda: ((Endless(),), {"steps": 3}),
}


@pytest.mark.parametrize("make", FINITE.values(), ids=FINITE)
def test_all_forms_give_the_same_images_and_labels(make):
    arguments, options = make()
    x, y = as_arrays(*arguments, **options)
    np.testing.assert_array_equal(x, X)
    np.testing.assert_array_equal(y.argmax(axis=1) if y.shape == (24, 3) else y.reshape(-1), Y)


def test_images_with_as_many_rows_as_classes_are_not_batches():
    images = rng.random((5, 3, 3, 1), "float32")
    labels = np.eye(3, dtype="float32")[[0, 1, 2, 0, 1]]
    x, y = as_arrays(slices(images, labels))
    np.testing.assert_array_equal(x, images)
    np.testing.assert_array_equal(y, labels)


@pytest.mark.parametrize("make", [generator, Endless, lambda: slices(X, Y).batch(8).repeat()])
def test_infinite_data_need_steps(make):
    with pytest.raises(ValueError, match="without an end needs `steps`"):
        as_arrays(make())


@pytest.mark.parametrize(
    ("make", "y", "message"),
    [
        (lambda: X, None, "`y` must be given"),
        (lambda: slices(X, Y).batch(8), Y, "`y` must be None"),
        (lambda: Sequence(), Y, "`y` must be None"),
        (lambda: slices(X).batch(8), None, "pair of images and labels"),
        (lambda: slices(X, Y).batch(8).take(0), None, "at least one pair"),
        (lambda: kr.datasets.ArrayDataset(X, Y).batch(8).take(0), None, "at least one pair"),
        (lambda: slices((X, X), Y).batch(8), None, "`x` must be one array"),
        (lambda: [X, X], Y, "`x` must be one array"),
        (lambda: X, {"a": Y, "b": Y}, "`y` must be one array"),
    ],
)
def test_bad_data(make, y, message):
    x = make()
    with pytest.raises(ValueError, match=message):
        as_arrays(x, y)


def small_model():
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Flatten(), keras.layers.Dense(3)]
    return keras.Sequential([keras.Input((6, 6, 1)), *layers])


@pytest.mark.slow
@pytest.mark.parametrize("make", FINITE.values(), ids=FINITE)
def test_evaluation_and_metrics_take_all_forms(make):
    arguments, options = make()
    model = small_model()
    expected = kr.evaluate(model, X, Y, [ATTACK], verbose=0, checks=False).accuracy("worst case")
    report = kr.evaluate(model, *arguments, **options, attacks=[ATTACK], verbose=0, checks=False)
    assert report.accuracy("worst case") == expected
    arguments, options = make()
    accuracy = kr.evaluation.robust_accuracy(model, *arguments, **options, attack=ATTACK)
    assert accuracy == expected


def robust_model():
    model = kr.RobustModel(small_model())
    model.compile("sgd", kr.losses.AdversarialTraining(ATTACK))
    return model


def ways_to_train(x, y=Y):
    return {
        "arrays": lambda m: m.fit(x, y, batch_size=8, verbose=0),
        "tf.data": lambda m: m.fit(slices(x, y).batch(8), verbose=0),
        "ArrayDataset": lambda m: m.fit(
            kr.datasets.ArrayDataset(x, y).batch(8), shuffle=False, verbose=0
        ),
        "PyDataset": lambda m: m.fit(Sequence(x, y), shuffle=False, verbose=0),
        "generator": lambda m: m.fit(generator(x, y), steps_per_epoch=3, verbose=0),
        "train_on_batch": lambda m: m.train_on_batch(x[:8], y[:8]),
    }


TWO_LABELS = np.tile(np.array([1.0, 1.0, 0.0], "float32"), (24, 1))
BAD = {
    "0 to 255": (255 * X, Y, "inside the attack's `bounds`"),
    "uint8": ((255 * X).astype("uint8"), Y, "must be floating"),
    "labels": (X, Y + 5, "from 0 to 2"),
    "multi-label": (X, TWO_LABELS, "rows that sum to 1"),
    "NaN": (np.where(X > 0.5, np.nan, X), Y, "must be finite"),
}


@pytest.mark.parametrize("form", ways_to_train(X))
@pytest.mark.parametrize(("x", "y", "message"), BAD.values(), ids=BAD)
def test_training_checks_the_first_batch(form, x, y, message):
    with pytest.raises(ValueError, match=message):
        ways_to_train(x, y)[form](robust_model())


@pytest.mark.slow_on_jax
@pytest.mark.filterwarnings("ignore:`shuffle=True` was passed")
@pytest.mark.parametrize("form", [form for form in ways_to_train(X) if form != "train_on_batch"])
def test_the_check_of_the_first_batch_skips_no_batch(form):
    weights = {}
    for name in ("arrays", form):
        model = robust_model()
        if name == "arrays":
            model.fit(X, Y, batch_size=8, shuffle=False, verbose=0)
        elif form != "arrays":
            ways_to_train(X, Y)[form](model)
        else:
            continue
        weights[name] = model.get_weights()
    for first, second in zip(weights["arrays"], weights.get(form, weights["arrays"]), strict=True):
        np.testing.assert_allclose(first, second, atol=1e-6)


def test_the_check_of_a_loader_does_not_change_torch_random_numbers(monkeypatch):
    entered = []

    class ForkedState:
        def __enter__(self):
            entered.append("in")

        def __exit__(self, *args):
            entered.append("out")

    random = types.SimpleNamespace(fork_rng=lambda devices: ForkedState())
    monkeypatch.setitem(sys.modules, "torch", types.SimpleNamespace(random=random))
    images, labels, again = first_batch(loader := DataLoader())
    assert again is loader
    assert entered == ["in", "out"]
    np.testing.assert_array_equal(images, X[:8])
    np.testing.assert_array_equal(labels, Y[:8])
