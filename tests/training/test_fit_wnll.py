"""`fit_wnll` alternates linear and WNLL stages, and can be resumed."""

import json
import warnings

import keras
import numpy as np
import pytest
from keras import ops

import keras_robust as kr

pytestmark = pytest.mark.slow_on_jax

RNG = np.random.default_rng(0)
Y = np.arange(80) % 3
X = np.clip(RNG.uniform(0.2, 0.8, (3, 6))[Y] + 0.2 * RNG.normal(size=(80, 6)), 0, 1)
X = X.astype("float32")
# With seed 3, this example is not in the half for the template.
LAST = np.random.default_rng(3).permutation(80)[-1]
SETTINGS = {
    "linear_epochs": 2, "wnll_epochs": 1, "linear_batch_size": 40, "wnll_batch_size": 40,
    "verbose": 0,
}  # fmt: skip


@keras.saving.register_keras_serializable(package="test_fit_wnll")
class Pair(keras.layers.Layer):
    """A layer with nested layers."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.first, self.second = keras.layers.Dense(8, "tanh"), keras.layers.Dense(8, "tanh")

    def build(self, input_shape):
        self.first.build(input_shape)
        self.second.build((None, 8))

    def call(self, x):
        return self.second(self.first(x))


def make_model(**arguments):
    keras.utils.set_random_seed(1)
    settings = {"units": 8, "num_neighbors": 8, "sigma_neighbor": 4, "template_size": 30}
    head = kr.layers.WNLLHead(3, **{**settings, **arguments})
    return keras.Sequential(
        [
            keras.Input((6,)),
            keras.Sequential([keras.layers.Dense(8, "tanh"), keras.layers.BatchNormalization()]),
            Pair(),
            keras.layers.Dropout(0.2),
            head,
        ]
    )


def weights_of(model):
    return {weight.path: ops.convert_to_numpy(weight) for weight in model.weights}


def fast(number, steps_per_epoch):
    return keras.optimizers.SGD(0.1)


class Watch(keras.callbacks.Callback):
    """Records the phase of the head, and the weights before and after each stage."""

    def __init__(self, model):
        super().__init__()
        self.watched, self.stages = model, []

    def on_train_begin(self, logs=None):
        self.stages.append([self.watched.layers[-1].phase, weights_of(self.watched)])

    def on_train_end(self, logs=None):
        self.stages[-1].append(weights_of(self.watched))


class Interrupted(Exception):  # noqa: N818
    pass


class Stopping(keras.callbacks.Callback):
    """Raises an error at the start of stage number `at`."""

    def __init__(self, at):
        super().__init__()
        self.at, self.count = at, 0

    def on_train_begin(self, logs=None):
        self.count += 1
        if self.count > self.at:
            raise Interrupted


@pytest.mark.parametrize(
    ("gradient", "passes"),
    [
        pytest.param("exact", 2, marks=pytest.mark.slow),
        ("straight_through", 1),
        pytest.param("linear", 1, marks=pytest.mark.slow),
    ],
)
def test_each_stage_trains_its_weights(gradient, passes):
    model = make_model(gradient=gradient)
    watch = Watch(model)
    history = kr.training.fit_wnll(
        model, X, Y, passes=passes, wnll_optimizer=fast, callbacks=[watch], **SETTINGS
    )
    assert history["stage"] == [0, 0, 1, 2, 2, 3][: 3 * passes]
    assert {len(values) for values in history.values()} == {3 * passes}
    assert set(history) == {"stage", "loss", "accuracy"}
    assert [stage[0] for stage in watch.stages] == ["linear", "wnll"] * passes
    for phase, before, after in watch.stages:
        moved = {path for path in before if not np.array_equal(before[path], after[path])}
        moved = {path for path in moved if "seed" not in path}
        if phase == "wnll":
            assert len(moved) == 2
            assert all("/buffer/" in path for path in moved)
        else:
            assert len(moved) == 4 + 4 + 4 + 2
    head = model.layers[-1]
    assert head.phase == "wnll"
    expected = make_model()
    expected.set_weights(model.get_weights())
    kr.training.adapt_template(expected, X, Y)
    np.testing.assert_allclose(
        ops.convert_to_numpy(head.template.features),
        ops.convert_to_numpy(expected.layers[-1].template.features),
        atol=1e-5,
    )


@pytest.mark.slow
def test_trainable_flags_are_restored():
    model = make_model()
    model.layers[0].layers[0].trainable = False
    model.layers[1].first.trainable = False
    model.layers[1].second.kernel.trainable = False
    parts = [*model._flatten_layers(), *model.weights]
    before = [part.trainable for part in parts]
    frozen = [w.path for w in model.non_trainable_weights]
    start = weights_of(model)
    kr.training.fit_wnll(model, X, Y, passes=1, **SETTINGS)
    assert [part.trainable for part in parts] == before
    assert [w.path for w in model.non_trainable_weights] == frozen
    end = weights_of(model)
    for layer in (model.layers[0].layers[0], model.layers[1].first):
        np.testing.assert_array_equal(start[layer.kernel.path], end[layer.kernel.path])

    with pytest.raises(Interrupted):
        kr.training.fit_wnll(model, X, Y, passes=1, callbacks=[Stopping(1)], **SETTINGS)
    assert [part.trainable for part in parts] == before


@pytest.mark.parametrize("adversarial", [False, True])
def test_the_trained_model_can_be_trained_on_and_saved(adversarial, tmp_path):
    model = make_model(gradient="straight_through")
    attack = kr.attacks.PGD(0.05, num_steps=1)
    loss = kr.losses.AdversarialTraining(attack) if adversarial else None
    kr.training.fit_wnll(model, X, Y, passes=1, wnll_loss=loss, **SETTINGS)
    model.save(tmp_path / "model.keras")
    with warnings.catch_warnings():
        # Keras warns if the saved optimizer does not have the variables of the model.
        warnings.filterwarnings("error", message="Skipping variable loading")
        loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(
        loaded.predict(X, verbose=0), model.predict(X, verbose=0), rtol=1e-5, atol=1e-5
    )
    for trained in (model, loaded):
        before = weights_of(trained)
        trained.fit(X, Y, batch_size=40, verbose=0)
        after = weights_of(trained)
        kernel = trained.layers[0].layers[0].kernel.path
        assert not np.array_equal(before[kernel], after[kernel])


@pytest.mark.slow
@pytest.mark.parametrize("done", [1, 2])
def test_an_interrupted_training_can_be_resumed(done, tmp_path):
    uninterrupted = make_model()
    settings = {**SETTINGS, "passes": 1}
    expected = kr.training.fit_wnll(uninterrupted, X, Y, **settings)
    with pytest.raises(Interrupted) if done < 2 else pytest.MonkeyPatch.context():
        kr.training.fit_wnll(
            make_model(), X, Y, directory=tmp_path, callbacks=[Stopping(done)], **settings
        )
    assert len(json.loads((tmp_path / "stages.json").read_text())["histories"]) == done
    again = make_model()
    stopping = Stopping(2 - done)
    history = kr.training.fit_wnll(
        again, X, Y, directory=tmp_path, callbacks=[stopping], **settings
    )
    assert stopping.count == 2 - done
    assert history["stage"] == expected["stage"]
    np.testing.assert_allclose(history["loss"], expected["loss"], rtol=1e-4)
    for ours, theirs in zip(again.weights, uninterrupted.weights, strict=True):
        if "seed" not in ours.path:
            values = (ops.convert_to_numpy(weight) for weight in (ours, theirs))
            np.testing.assert_allclose(*values, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_a_compiled_model_can_be_resumed(tmp_path):
    settings = {**SETTINGS, "passes": 1, "directory": tmp_path}
    trained, compiled = make_model(), make_model()
    expected = kr.training.fit_wnll(trained, X, Y, **settings)
    compiled.compile("adam", "mse")
    compiled.optimizer.build(compiled.trainable_variables)
    for model in (trained, compiled):
        with warnings.catch_warnings():
            # Keras warns if the saved optimizer does not have the variables of the model's.
            warnings.filterwarnings("error", message="Skipping variable loading")
            assert kr.training.fit_wnll(model, X, Y, **settings) == expected
        assert isinstance(model.optimizer, keras.optimizers.SGD)
    np.testing.assert_allclose(
        compiled.predict(X, verbose=0), trained.predict(X, verbose=0), rtol=1e-5, atol=1e-5
    )


@pytest.mark.slow
def test_only_the_same_schedule_can_be_resumed(tmp_path):
    def unbuilt():
        head = kr.layers.WNLLHead(3, units=8, num_neighbors=8, sigma_neighbor=4, template_size=30)
        return keras.Sequential([keras.layers.Dense(8), head])

    settings = {**SETTINGS, "passes": 1, "directory": tmp_path}
    first = unbuilt()
    kr.training.fit_wnll(first, X, Y, **settings)
    second = unbuilt()
    kr.training.fit_wnll(second, X, Y, **settings)
    np.testing.assert_allclose(first.predict(X, verbose=0), second.predict(X, verbose=0), atol=1e-4)
    attack = kr.attacks.FGSM(0.1, objective=kr.attacks.WNLLSurrogate("linear"))
    for change in (
        {"passes": 2}, {"seed": 1}, {"linear_epochs": 3}, {"wnll_batch_size": 20},
        {"linear_loss": kr.losses.AdversarialTraining(attack)},
    ):  # fmt: skip
        with pytest.raises(ValueError, match="another schedule"):
            kr.training.fit_wnll(unbuilt(), X, Y, **{**settings, **change})


@pytest.mark.slow
def test_adversarial_stages():
    """Algorithm 3: each stage trains adversarially, on a wrapped model."""
    attack = kr.attacks.PGD(0.05, num_steps=2)
    model = make_model(gradient="straight_through")
    watch = Watch(model)
    history = kr.training.fit_wnll(
        kr.RobustModel(model), X, Y, passes=1, callbacks=[watch], wnll_optimizer=fast,
        linear_loss=kr.losses.AdversarialTraining(attack),
        wnll_loss=kr.losses.AdversarialTraining(attack), validation_data=(X[:40], Y[:40]),
        **SETTINGS,
    )  # fmt: skip
    assert np.isfinite(history["loss"]).all()
    assert len(history["val_accuracy"]) == 3
    _, before, after = watch.stages[1]
    moved = {path for path in before if not np.array_equal(before[path], after[path])}
    assert {path.split("/")[-2] for path in moved if "seed" not in path} == {"buffer"}


@pytest.mark.slow
def test_unlabeled_examples():
    y = np.where(np.arange(80) % 5 == 0, -1, Y)
    model = make_model(unlabeled_size=10)
    history = kr.training.fit_wnll(model, X, y, passes=1, **SETTINGS)
    assert np.isfinite(history["loss"]).all()
    assert model.layers[-1].is_adapted


@pytest.mark.slow
def test_training_learns():
    model = make_model()
    history = kr.training.fit_wnll(
        model, X, Y, passes=1, **{**SETTINGS, "linear_epochs": 40}, linear_optimizer=fast
    )
    assert history["accuracy"][-1] > 0.8
    assert (model.predict(X, verbose=0).argmax(1) == Y).mean() > 0.8


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": keras.Sequential([keras.Input((6,)), keras.layers.Dense(3)])}, "WNLLHead"),
        ({"units": None}, "buffer block"),
        ({"unlabeled_size": 5}, "`unlabeled_size`"),
        ({"passes": 0}, "passes"),
        ({"wnll_epochs": 1.5}, "wnll_epochs"),
        ({"template_fraction": 0.1}, "template_fraction"),
        ({"template_fraction": 1.0}, "template_fraction"),
        ({"y": Y + 1}, "below 3"),
        ({"y": np.where(np.arange(80) == LAST, 2, Y % 2)}, "classes"),
        ({"y": None}, "`y` must be given"),
    ],
)
def test_bad_arguments_are_an_error_before_any_work(change, message):
    head = {name: change[name] for name in ("units", "unlabeled_size") if name in change}
    model = make_model(**head)
    before = model.get_weights()
    arguments = {"model": model, "x": X, "y": Y, **SETTINGS}
    arguments |= {name: value for name, value in change.items() if name not in head}
    with pytest.raises(ValueError, match=message):
        kr.training.fit_wnll(**{**arguments, "seed": 3})
    for weight, value in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(weight, value)
