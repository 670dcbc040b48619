"""A WNLL head predicts by the graph after end-to-end training, and NaN for bad images."""

import keras
import numpy as np
import pytest
from data_sets import pairs, tf_data

import keras_robust as kr

pytestmark = pytest.mark.slow_on_jax

RNG = np.random.default_rng(0)
CENTERS = RNG.uniform(0, 1, (4, 6))
Y = (np.arange(160) % 4).astype("int32")
X = (CENTERS[Y] + 0.15 * RNG.normal(size=(160, 6))).astype("float32")
X_TEST = (CENTERS[Y] + 0.15 * RNG.normal(size=(160, 6))).astype("float32")


def make_model(activation="tanh", **arguments):
    keras.utils.set_random_seed(1)
    settings = {"num_neighbors": 8, "template_size": 60, **arguments}
    head = kr.layers.WNLLHead(4, **settings)
    return keras.Sequential([keras.Input((6,)), keras.layers.Dense(8, activation), head])


def compiled(model, loss=None):
    robust = kr.RobustModel(model)
    loss = kr.losses.GraphInterpolation() if loss is None else loss
    robust.compile(keras.optimizers.SGD(0.1), loss, metrics=["accuracy"])
    return robust


def accuracy(model):
    return float((model.predict(X_TEST, verbose=0).argmax(axis=1) == Y).mean())


def shuffled(make=pairs):
    return make(X, Y).shuffle(160, seed=0).batch(40)


class Batches(keras.utils.PyDataset):
    def __len__(self):
        return 4

    def __getitem__(self, number):
        rows = slice(40 * number, 40 * number + 40)
        return X[rows], Y[rows]


FORMS = {
    "arrays": lambda: ((X, Y), {"batch_size": 40}),
    "tensors and one-hot labels": lambda: (
        (keras.ops.convert_to_tensor(X), np.eye(4)[Y]),
        {"batch_size": 40},
    ),
    "tf.data": lambda: ((shuffled(tf_data),), {}),
    "endless tf.data": lambda: ((shuffled(tf_data).repeat(),), {"steps_per_epoch": 4}),
    "ArrayDataset": lambda: ((shuffled(kr.datasets.ArrayDataset),), {}),
    "PyDataset": lambda: ((Batches(),), {}),
}


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_the_model_predicts_by_the_graph_after_fit(form):
    """`fit` fills the template. Chance would be an accuracy of 25%."""
    data, arguments = FORMS[form]()
    model = make_model()
    history = compiled(model).fit(*data, epochs=3, verbose=0, **arguments).history
    assert model.layers[-1].phase == "wnll"
    assert history["accuracy"][-1] > 0.8
    assert accuracy(model) > history["accuracy"][-1] - 0.15


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["generator", "iterator"])
def test_data_that_can_only_be_read_once_cause_a_warning(kind):
    def generator():
        for number in range(8):
            yield Batches()[number % 4]

    data = generator() if kind == "generator" else iter(shuffled(tf_data).repeat())
    model = make_model()
    robust = compiled(model)
    with pytest.warns(UserWarning, match=r"adapt_template\(model, x, y\)"):
        robust.fit(data, steps_per_epoch=4, epochs=2, verbose=0)
    assert model.layers[-1].phase == "linear"
    kr.training.adapt_template(model, X, Y)
    assert accuracy(model) > 0.8


@pytest.mark.slow
def test_a_callback_fills_the_template_if_fit_cannot():
    model = make_model()
    data = (Batches()[number % 4] for number in range(8))
    update = kr.callbacks.TemplateUpdate(X, Y)
    robust = compiled(model)
    robust.fit(data, steps_per_epoch=4, epochs=2, verbose=0, callbacks=[update])
    assert accuracy(model) > 0.8


@pytest.mark.slow
def test_validation_and_the_best_epoch_use_the_graph(tmp_path):
    """Otherwise early stopping and checkpoints would monitor a branch that is not trained."""
    robust = compiled(make_model())
    path = tmp_path / "best.keras"
    callbacks = [
        keras.callbacks.ModelCheckpoint(path, "val_accuracy", mode="max", save_best_only=True),
        keras.callbacks.EarlyStopping("val_accuracy", mode="max", restore_best_weights=True),
    ]
    history = robust.fit(
        X, Y, batch_size=40, epochs=3, verbose=0, validation_data=(X_TEST, Y),
        validation_batch_size=160, callbacks=callbacks,
    ).history  # fmt: skip
    assert max(history["val_accuracy"]) > 0.8
    found = robust.evaluate(X_TEST, Y, batch_size=160, verbose=0)[1]
    assert found == pytest.approx(max(history["val_accuracy"]), abs=0.02)
    loaded = keras.models.load_model(path)
    found = loaded.evaluate(X_TEST, Y, batch_size=160, verbose=0)[1]
    assert found == pytest.approx(max(history["val_accuracy"]), abs=0.02)


@pytest.mark.slow
def test_images_of_the_validation_split_are_not_in_the_template():
    """Otherwise they would be classified by their own labels."""
    model = make_model(template_size=160)
    x, y = np.concatenate([X, X_TEST]), np.tile(Y, 2)
    compiled(model).fit(x, y, batch_size=40, validation_split=0.5, verbose=0)
    assert has_template_of(model, X, Y)


@pytest.mark.slow
def test_fit_with_a_weighted_sum():
    model = make_model()
    plain = kr.losses.FisherInformation(weight=0.0)
    loss = kr.losses.Sum([plain, kr.losses.GraphInterpolation()], weights=[0.1, 1.0])
    compiled(model, loss).fit(X, Y, batch_size=40, verbose=0, epochs=3)
    assert accuracy(model) > 0.8


@pytest.mark.slow
def test_fit_with_unlabeled_examples():
    model = make_model(unlabeled_size=20)
    y = np.where(np.arange(160) % 5 == 0, -1, Y)
    compiled(model).fit(X, y, batch_size=40, verbose=0, epochs=3)
    assert accuracy(model) > 0.8


def test_too_few_examples_for_the_template_are_an_error_before_training():
    for data in ((X, Y), (shuffled(),)):
        robust = compiled(make_model(template_size=200))
        with pytest.raises(ValueError, match=r"at least `template_size`, 200.*TemplateUpdate"):
            robust.fit(*data, verbose=0)
        assert int(robust.optimizer.iterations) == 0
    robust = compiled(make_model())
    with pytest.raises(ValueError, match=r"without the classes \[3\]"):
        robust.fit(X[Y < 3], Y[Y < 3], verbose=0)


def test_a_batch_that_is_too_small_for_its_folds_is_an_error():
    with pytest.raises(ValueError, match="at least `num_folds`, 3"):
        compiled(make_model()).fit(X, Y, batch_size=2, verbose=0)


@pytest.mark.slow
@pytest.mark.parametrize("joint", [True, False])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_an_image_that_is_not_finite_has_nan_outputs(joint, value):
    """Its output is NaN, like that of a dense layer, and the other outputs do not change."""
    model = make_model(activation=None)
    kr.training.adapt_template(model, X, Y)
    model.layers[-1].joint = joint
    x = X_TEST[:20].copy()
    x[5, 0] = value
    outputs = model.predict(x, verbose=0)
    assert np.isnan(outputs[5]).all()
    rest = np.delete(np.arange(20), 5)
    expected = model.predict(x[rest], verbose=0)
    np.testing.assert_allclose(np.exp(outputs[rest]), np.exp(expected), atol=1e-4)


def test_sigma_neighbor_defaults_to_half_of_num_neighbors():
    head = kr.layers.WNLLHead(10, num_neighbors=10)
    assert head.sigma_neighbor == 5
    assert kr.layers.WNLLHead(10).sigma_neighbor == 15


@pytest.mark.slow
def test_filling_the_template_does_not_affect_training():
    """Filling the template has no effect on training."""
    found = []
    for callbacks in ([], [keras.callbacks.History()]):
        robust = compiled(make_model())
        history = robust.fit(
            X, Y, batch_size=40, epochs=3, shuffle=False, verbose=0, callbacks=callbacks,
            validation_data=(X_TEST, Y) if callbacks else None,
        ).history  # fmt: skip
        found.append((history["loss"], robust.get_weights()))
    np.testing.assert_allclose(found[0][0], found[1][0], rtol=1e-5)
    for one, other in zip(found[0][1], found[1][1], strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def has_template_of(model, x, y):
    """Returns whether the template is already that of the data."""
    before = model.get_weights()
    kr.training.adapt_template(model, x, y)
    return all(
        np.allclose(one, other, atol=1e-5)
        for one, other in zip(before, model.get_weights(), strict=True)
    )


def test_each_call_of_fit_fills_the_template_with_its_data():
    model = make_model()
    robust = compiled(model)
    robust.fit(X, Y, batch_size=40, verbose=0)
    assert has_template_of(model, X, Y)
    robust.fit(X_TEST, Y, batch_size=40, verbose=0)
    assert has_template_of(model, X_TEST, Y)
