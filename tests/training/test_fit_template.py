"""`fit` fills the template of a WNLL head with examples of its data, after each epoch."""

import keras
import numpy as np
import pytest
from data_sets import pairs, tf_data
from keras import ops

import keras_robust as kr
from keras_robust.layers.template import choose_template
from keras_robust.training import template_draw
from keras_robust.training.adapt_template import head_inputs
from keras_robust.training.fit_template import graph_losses
from keras_robust.training.template_draw import draw_from_data_set

RNG = np.random.default_rng(0)
Y = np.arange(60) % 3
X = (RNG.uniform(0, 1, (3, 6))[Y] + 0.3 * RNG.normal(size=(60, 6))).astype("float32")


def make_model(**arguments):
    keras.utils.set_random_seed(1)
    head = kr.layers.WNLLHead(3, **{"num_neighbors": 8, "template_size": 30, **arguments})
    model = kr.RobustModel(keras.Sequential([keras.Input((6,)), keras.layers.Dense(8), head]))
    model.compile(keras.optimizers.SGD(0.1), kr.losses.GraphInterpolation())
    return model, head


def template(size, num_classes=3, unlabeled_size=0):
    head = kr.layers.WNLLHead(num_classes, template_size=size, unlabeled_size=unlabeled_size)
    return head.template


def numbered(labels, batch_size=64, make=pairs):
    """Returns a data set whose images are their row numbers."""
    images = np.arange(len(labels), dtype="float32")[:, None]
    return make(images, labels).batch(batch_size)


class TestDrawFromDataSet:
    def test_all_examples_are_equally_likely(self):
        """The mean row of 500 out of 5,000 has a standard deviation of 61."""
        labels = np.repeat([0, 1, 2], [3000, 1999, 1])
        images, found = draw_from_data_set(template(500), numbered(labels), None)
        rows = images[:, 0].astype(int)
        assert len(set(rows)) == 500
        np.testing.assert_array_equal(found, labels[rows])
        assert 4999 in rows
        assert abs(rows.mean() - 2500) < 5 * 61
        assert abs((found == 0).sum() - 300) < 5 * 10.4

    def test_the_draw_equals_that_from_arrays(self):
        """In a random order, the first example of each class is drawn before all others."""
        labels = RNG.integers(0, 3, 400)
        images, _ = draw_from_data_set(template(20), numbered(labels), None)
        order = np.argsort(np.random.default_rng(0).random(400))
        firsts = [next(row for row in order if labels[row] == k) for k in range(3)]
        others = [row for row in order if row not in firsts][:17]
        assert sorted(images[:, 0].astype(int)) == sorted([*firsts, *others])

    def test_unlabeled_examples(self):
        labels = np.where(np.arange(900) % 4 == 0, -1, np.arange(900) % 3)
        images, found = draw_from_data_set(template(50, 3, 40), numbered(labels), None)
        assert (found >= 0).sum() == 50
        assert (found < 0).sum() == 40
        np.testing.assert_array_equal(found, labels[images[:, 0].astype(int)])

    def test_only_as_many_examples_are_read_as_needed(self, monkeypatch):
        monkeypatch.setattr(template_draw, "_MOST_READ", 200)
        labels = np.zeros(1000, int)
        labels[[7, 650]] = 1, 2
        images, found = draw_from_data_set(template(100), numbered(labels, 50), None)
        assert images.max() < 700
        assert set(found) == {0, 1, 2}
        labels[:3] = 0, 1, 2
        images, _ = draw_from_data_set(template(100), numbered(labels, 50), None)
        assert images.max() < 200

    def test_an_infinite_data_set_is_read_for_steps(self):
        data = numbered(np.arange(300) % 3, 50, tf_data).repeat()
        images, _ = draw_from_data_set(template(100), data, 2)
        assert sorted(images[:, 0].astype(int)) == list(range(100))

    @pytest.mark.parametrize(
        ("labels", "message"),
        [
            (np.arange(90) % 3, "`template_size`, 100, labeled.*Received: 90"),
            (np.arange(300) % 2, r"without the classes \[2\]"),
            (np.arange(300) % 4, "integers below 3"),
            (np.arange(300) % 3 + 0.5, "dtype float64"),
        ],
    )
    def test_bad_labels(self, labels, message):
        with pytest.raises(ValueError, match=message):
            draw_from_data_set(template(100), numbered(labels), None)

    def test_other_forms_of_labels_give_the_same_template(self):
        labels = np.arange(300) % 3
        expected = draw_from_data_set(template(100), numbered(labels), None)
        for form in (labels.astype("float32"), labels[:, None], np.eye(3)[labels]):
            found = draw_from_data_set(template(100), numbered(form), None)
            for one, other in zip(found, expected, strict=True):
                np.testing.assert_array_equal(one, other)


def test_choose_template_has_all_classes_and_no_duplicates():
    labels = np.where(np.arange(200) == 77, 2, np.arange(200) % 2)
    for seed in range(5):
        rows = choose_template(labels, 30, seed)
        assert len(set(rows)) == 30
        assert 77 in rows


def test_adapt_template_only_needs_the_drawn_examples():
    """Examples that are not drawn have no effect."""
    model, head = make_model(unlabeled_size=10)
    labels = np.where(np.arange(60) % 3 == 0, -1, Y)
    labels[:9] = Y[:9]
    kr.training.adapt_template(model, X, labels, seed=3)
    found = [ops.convert_to_numpy(w) for w in (head.template.features, head.template.unlabeled)]
    head.adapt(head_inputs(model, X), labels, seed=3)
    np.testing.assert_allclose(found[0], ops.convert_to_numpy(head.template.features), atol=1e-6)
    np.testing.assert_allclose(found[1], ops.convert_to_numpy(head.template.unlabeled), atol=1e-6)


class Watch(keras.callbacks.Callback):
    """Records the phase of the head in training and validation, and at the end of each epoch."""

    def __init__(self, head):
        super().__init__()
        self.head, self.phases = head, []

    def on_train_batch_begin(self, batch, logs=None):
        _ = self.model  # On JAX, this updates the variables from the training state.
        self.phases.append(("batch", self.head.phase))

    def on_test_begin(self, logs=None):
        self.phases.append(("test", self.head.phase))

    def on_epoch_end(self, epoch, logs=None):
        self.phases.append(("end", self.head.phase))


@pytest.mark.slow
@pytest.mark.parametrize("form", ["list", "one", "CallbackList"])
def test_training_has_the_linear_phase_and_validation_the_wnll_phase(form):
    model, head = make_model()
    watch = Watch(head)
    callbacks = {
        "list": [watch],
        "one": watch,
        "CallbackList": keras.callbacks.CallbackList([watch], model=model),
    }[form]
    model.fit(X, Y, batch_size=30, epochs=2, verbose=0, validation_data=(X, Y), callbacks=callbacks)
    epoch = [("batch", "linear")] * 2 + [("test", "wnll"), ("end", "wnll")]
    assert watch.phases == 2 * epoch
    assert head.phase == "wnll"


@pytest.mark.slow_on_jax
def test_the_callback_replaces_the_template_of_fit():
    """`TemplateUpdate` fills the template with its own data."""
    model, head = make_model(template_size=60)
    model.fit(X[:30], Y[:30], verbose=0, callbacks=[kr.callbacks.TemplateUpdate(X, Y)])
    labels = ops.convert_to_numpy(head.template.labels)
    np.testing.assert_array_equal(np.bincount(labels), [20, 20, 20])


def test_an_interrupted_fit_does_not_fill_the_template():
    model, head = make_model()

    class Stop(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        model.fit(X, Y, verbose=0, callbacks=[Stop()])
    assert head.phase == "linear"
    assert not head.is_adapted


@pytest.mark.slow
def test_a_diverged_network_causes_a_warning():
    model, _ = make_model()
    weights = model.get_weights()
    weights[0] = weights[0] * np.nan
    model.set_weights(weights)
    with pytest.warns(UserWarning, match="not filled: .* NaN or infinite"):
        history = model.fit(X, Y, verbose=0).history
    assert np.isnan(history["loss"]).all()
    assert np.isnan(model.predict(X, verbose=0)).all()


def test_graph_losses_are_found_in_sums_and_structures():
    gi, plain = kr.losses.GraphInterpolation(), keras.losses.CategoricalHinge()
    nested = kr.losses.Sum([plain, kr.losses.Sum([gi, plain])])
    for loss in (gi, nested, [gi], {"head": nested}, [plain, gi]):
        assert graph_losses(loss) == [gi]
    for loss in (None, plain, "mse", [plain], kr.losses.Sum([plain])):
        assert graph_losses(loss) == []
