"""A loss with an attack is never silently ignored in a list, a dict, a wrapper or a plain model."""

import keras
import numpy as np
import pytest

import keras_robust as kr

pytestmark = pytest.mark.slow_on_jax

rng = np.random.default_rng(0)
X, Y = rng.random((32, 4, 4, 1), "float32"), rng.integers(0, 3, 32)
ATTACK = kr.attacks.PGD(0.1, num_steps=2, random_start=False)


def functional():
    keras.utils.set_random_seed(0)
    image = keras.Input((4, 4, 1))
    return keras.Model(image, keras.layers.Dense(3, name="head")(keras.layers.Flatten()(image)))


def sequential():
    layers = [keras.layers.Flatten(), keras.layers.Dense(3, name="head")]
    keras.utils.set_random_seed(0)
    return keras.Sequential([keras.Input((4, 4, 1)), *layers])


def loss_of_a_step(loss, make=functional, labels=Y, **settings):
    model = kr.RobustModel(make())
    model.compile(keras.optimizers.SGD(0.0), loss, **settings)
    return model.fit(X, labels, batch_size=32, verbose=0).history


@pytest.mark.parametrize("make", [functional, sequential])
def test_a_list_or_a_dict_of_one_loss_equals_the_loss(make):
    loss = kr.losses.AdversarialTraining(ATTACK)
    expected = loss_of_a_step(loss, make)["loss"][0]
    config = keras.saving.serialize_keras_object(loss)
    for structure in ([loss], {"head": loss}, {"head": config}):
        assert loss_of_a_step(structure, make)["loss"][0] == pytest.approx(expected, rel=1e-6)


def test_metrics_weights_and_labels_in_dicts():
    loss = kr.losses.AdversarialTraining(ATTACK)
    expected = loss_of_a_step(loss, metrics=["accuracy"])
    history = loss_of_a_step(
        {"head": loss}, labels={"head": Y}, metrics={"head": ["accuracy"]},
        loss_weights={"head": 0.5},
    )  # fmt: skip
    assert history["loss"][0] == pytest.approx(0.5 * expected["loss"][0], rel=1e-6)
    assert history["accuracy"] == expected["accuracy"]
    halved = loss_of_a_step([loss], loss_weights=[0.5])
    assert halved["loss"][0] == pytest.approx(0.5 * expected["loss"][0], rel=1e-6)


def test_a_loss_times_a_number():
    loss = kr.losses.AdversarialTraining(ATTACK)
    expected = loss_of_a_step(loss)["loss"][0]
    half = keras.Variable(0.5, trainable=False)
    for product in (0.5 * loss, loss * 0.5, np.float32(0.5) * loss, loss * half):
        assert loss_of_a_step(product)["loss"][0] == pytest.approx(0.5 * expected, rel=1e-6)
    both = 0.5 * loss + 2 * kr.losses.MaxMahalanobis()
    other = loss_of_a_step(kr.losses.MaxMahalanobis())["loss"][0]
    assert loss_of_a_step(both)["loss"][0] == pytest.approx(0.5 * expected + 2 * other, rel=1e-5)
    with pytest.raises(ValueError, match="`weights`"):
        -1 * loss


def test_several_losses_are_an_error_in_compile():
    loss = kr.losses.AdversarialTraining(ATTACK)
    model = kr.RobustModel(functional())
    for several in ([loss, loss], {"head": loss, "other": None}, ["mse", loss]):
        with pytest.raises(ValueError, match=r"must be the only one.*loss_1 \+ 0.5 \* loss_2"):
            model.compile("adam", several)
    with pytest.raises(ValueError, match="must be the only one"):
        model.compile("adam", "mse", loss_weights=[loss])
    for where in ("metrics", "weighted_metrics"):
        with pytest.raises(ValueError, match=r"cannot be a metric.*RobustAccuracy"):
            model.compile("adam", "mse", **{where: [loss]})


class Wrapper(keras.losses.Loss):
    def __init__(self, loss):
        super().__init__()
        self.inner = loss

    def call(self, y_true, y_pred):
        return self.inner.call(y_true, y_pred)


def test_a_wrapped_loss_is_an_error_in_the_first_step():
    loss = kr.losses.AdversarialTraining(ATTACK)
    compiled = kr.RobustModel(functional())
    compiled.compile("adam", loss)
    inside = {
        "function": lambda y_true, y_pred: loss(y_true, y_pred),
        "loss": Wrapper(loss),
        "sum": Wrapper(loss) + kr.losses.MaxMahalanobis(),
        "Keras's wrapper": compiled._compile_loss,
    }
    for wrapped in inside.values():
        with pytest.raises(ValueError, match="pass the loss itself"):
            loss_of_a_step(wrapped)


@pytest.mark.parametrize("wrap", [lambda v: v, lambda v: [v], lambda v: {"head": v}])
def test_a_model_that_is_not_wrapped_is_an_error(wrap):
    model = functional()
    model.compile("adam", wrap(kr.losses.AdversarialTraining(ATTACK)))
    with pytest.raises(ValueError, match=r"RobustModel\(model\)"):
        model.fit(X, Y, verbose=0)


def test_a_loaded_model_continues_training(tmp_path):
    model = kr.RobustModel(functional())
    model.compile("adam", [kr.losses.AdversarialTraining(ATTACK)], metrics=["accuracy"])
    model.fit(X, Y, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert isinstance(loaded.loss, kr.losses.AdversarialTraining)
    for _ in range(2):
        histories = [m.fit(X, Y, shuffle=False, verbose=0).history for m in (model, loaded)]
        assert histories[0]["loss"] == pytest.approx(histories[1]["loss"], rel=1e-5)
