"""The callback `TemplateUpdate` fills the template with features of the current weights."""

import copy

import keras
import numpy as np
import pytest
from keras import ops

import keras_robust as kr
from keras_robust.training.adapt_template import head_inputs

pytestmark = pytest.mark.slow_on_jax

RNG = np.random.default_rng(0)
Y = np.arange(60) % 3
X = (RNG.uniform(0, 1, (3, 6))[Y] + 0.3 * RNG.normal(size=(60, 6))).astype("float32")


def make_model():
    keras.utils.set_random_seed(1)
    head = kr.layers.WNLLHead(3, num_neighbors=8, sigma_neighbor=4, template_size=30)
    base = keras.Sequential([keras.Input((6,)), keras.layers.Dense(8, "tanh"), head])
    model = kr.RobustModel(base)
    model.compile(keras.optimizers.SGD(0.5), kr.losses.GraphInterpolation(linear_weight=1.0))
    return model, head


def template_of(head):
    return ops.convert_to_numpy(head.template.features)


class Watch(keras.callbacks.Callback):
    """Records the template before each epoch and validation, and at the end of each epoch."""

    def __init__(self, head):
        super().__init__()
        self.head, self.seen = head, {"begin": [], "test": [], "end": []}

    def on_epoch_begin(self, epoch, logs=None):
        self.seen["begin"].append(template_of(self.head))

    def on_test_begin(self, logs=None):
        self.seen["test"].append(template_of(self.head))

    def on_epoch_end(self, epoch, logs=None):
        self.seen["end"].append(template_of(self.head))


def is_current(model, head):
    """Returns whether each template point is the current feature vector of an image."""
    known = head_inputs(model, X)
    distances = abs(template_of(head)[:, None] - known[None]).max(axis=2).min(axis=1)
    return bool((distances < 1e-5).all())


@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize("validated", [True, False])
def test_the_template_is_filled_every_so_many_epochs(every, validated):
    model, head = make_model()
    watch = Watch(head)
    update = kr.callbacks.TemplateUpdate(X, Y, every=every)
    model.fit(
        X, Y, batch_size=30, epochs=3, verbose=0, callbacks=[update, watch],
        validation_data=(X, Y) if validated else None,
    )  # fmt: skip
    seen = watch.seen
    for epoch in range(3):
        is_changed = (seen["begin"][epoch] != seen["end"][epoch]).any()
        assert is_changed == ((epoch + 1) % every == 0)
        if validated:
            np.testing.assert_array_equal(seen["test"][epoch], seen["end"][epoch])
    assert head.phase == "wnll"
    assert is_current(model, head)


def test_validation_uses_the_template_of_the_current_weights():
    model, head = make_model()
    update = kr.callbacks.TemplateUpdate(X, Y)
    history = model.fit(
        X, Y, batch_size=30, epochs=2, verbose=0, callbacks=[update], validation_data=(X, Y),
        validation_batch_size=60,
    ).history  # fmt: skip
    assert is_current(model, head)
    after = model.evaluate(X, Y, batch_size=60, verbose=0)
    assert history["val_loss"][-1] == pytest.approx(after, rel=1e-3)


@pytest.mark.parametrize(("every", "comes_first"), [(1, True), (3, False)])
def test_restored_weights_have_a_matching_template(every, comes_first):
    model, head = make_model()
    stop = keras.callbacks.EarlyStopping("loss", mode="max", restore_best_weights=True)
    callbacks = [kr.callbacks.TemplateUpdate(X, Y, every=every), stop]
    model.fit(
        X, Y, batch_size=30, epochs=5, verbose=0,
        callbacks=callbacks if comes_first else callbacks[::-1],
    )  # fmt: skip
    assert is_current(model, head)


def test_takes_data_sets_and_unlabeled_examples():
    model, head = make_model()
    labels = np.where(np.arange(60) % 4 == 0, -1, Y)
    update = kr.callbacks.TemplateUpdate(X, labels, batch_size=7, seed=3)
    model.fit(X, labels, batch_size=30, verbose=0, callbacks=[update])
    assert is_current(model, head)
    expected = template_of(head)
    kr.training.adapt_template(model, X, labels, seed=3)
    np.testing.assert_allclose(template_of(head), expected, atol=1e-6)


def test_deepcopy():
    update = copy.deepcopy(kr.callbacks.TemplateUpdate(X, Y, every=2, batch_size=5, seed=3))
    np.testing.assert_array_equal(update.x, X)
    assert (update.every, update.batch_size, update.seed) == (2, 5, 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"every": 0}, "every"),
        ({"batch_size": 0}, "batch_size"),
        ({"y": None}, "`y` must be given"),
    ],
)
def test_bad_arguments(change, message):
    with pytest.raises(ValueError, match=message):
        kr.callbacks.TemplateUpdate(**{"x": X, "y": Y, **change})


def test_bad_data_are_found_before_training():
    model, _ = make_model()
    with pytest.raises(ValueError, match="`template_size`, 30"):
        model.fit(X, Y, verbose=0, callbacks=[kr.callbacks.TemplateUpdate(X[:20], Y[:20])])
    assert int(model.optimizer.iterations) == 0
    plain = keras.Sequential([keras.Input((6,)), keras.layers.Dense(3)])
    plain.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    with pytest.raises(ValueError, match=r"must end with a `keras_robust.layers.WNLLHead`"):
        plain.fit(X, Y, verbose=0, callbacks=[kr.callbacks.TemplateUpdate(X, Y)])
