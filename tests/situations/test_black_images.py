"""A black image, or one of a single colour, is like any other: in training and in measuring."""

import keras
import numpy as np
import pytest

import keras_robust as kr

pytestmark = pytest.mark.slow_on_jax

RNG = np.random.default_rng(0)
CENTERS = RNG.uniform(0.2, 0.8, (3, 4, 4, 1))
Y = np.arange(120) % 3
X = np.clip(CENTERS[Y] + 0.15 * RNG.normal(size=(120, 4, 4, 1)), 0, 1).astype("float32")
# Constant images, as broken files, padding and empty tiles are.
CONSTANT = {7: 0.0, 40: 0.001, 85: 0.01, 110: 0.0}


@pytest.fixture(scope="module")
def classifier():
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((4, 4, 1)),
            keras.layers.Flatten(),
            keras.layers.Dense(16, "relu"),
            keras.layers.Dense(3),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.02), loss)
    model.fit(X, Y, epochs=6, verbose=0)
    return model


def with_constant_images():
    x = X.copy()
    for number, value in CONSTANT.items():
        x[number] = value
    return x


def fine_tuned(classifier, loss, x, y=Y, batch_size=40):
    """One epoch: the loss, and a copy of the classifier after it."""
    model = keras.models.clone_model(classifier)
    model.set_weights(classifier.get_weights())
    robust = kr.RobustModel(model)
    robust.compile(keras.optimizers.SGD(1e-3), loss)
    history = robust.fit(x, y, batch_size=batch_size, shuffle=False, verbose=0).history
    return history["loss"][0], model


def accuracy(model):
    return float((model.predict(X, verbose=0).argmax(axis=1) == Y).mean())


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_deep_defense_fine_tunes_a_classifier_on_them(classifier, norm):
    loss = kr.losses.DeepDefense(weight=1.0, norm=norm)
    before = accuracy(classifier)
    assert before > 0.85
    plain, _ = fine_tuned(classifier, loss, X)
    with_them, model = fine_tuned(classifier, loss, with_constant_images())
    # Each of them counts as at most one with a perturbation twice as long as it is.
    most = np.exp(5) * (1 + 2 * 5 - 5)
    assert plain / 2 < with_them < plain + len(CONSTANT) / len(X) * most
    assert accuracy(model) > before - 0.05
    for old, new in zip(classifier.get_weights(), model.get_weights(), strict=True):
        assert abs(new - old).max() < 0.1


@pytest.mark.slow
def test_deep_defense_on_nothing_but_black_images(classifier):
    """A batch without any image to measure by: the loss is bounded, and moves no weight far."""
    black = np.zeros((8, 4, 4, 1), "float32")
    loss = kr.losses.DeepDefense(weight=1.0)
    for y in range(3):
        value, model = fine_tuned(classifier, loss, black, np.full(8, y), batch_size=8)
        assert 0 < value < 20 + np.exp(5) * (1 + 50 - 5)
        assert accuracy(model) > accuracy(classifier) - 0.05


def test_latent_disparity_of_each_sample(classifier):
    """Layers without biases are silent on a black image: their outputs are nothing to divide by."""
    silent = keras.models.clone_model(classifier)
    silent.set_weights([w if w.ndim > 1 else 0 * w for w in classifier.get_weights()])
    attack = kr.attacks.FGSM(0.05)
    loss = kr.losses.LatentDisparity(attack, ratio="sample")
    plain, _ = fine_tuned(silent, loss, X)
    with_them, model = fine_tuned(silent, loss, with_constant_images())
    assert with_them < 2 * plain + 1
    assert accuracy(model) > accuracy(silent) - 0.05


def test_rho_is_measured_on_them(classifier):
    attack = kr.attacks.DeepFool(num_steps=50)
    with pytest.warns(UserWarning, match="4 of 120 images are all but equal to `mean`"):
        found = kr.evaluation.rho(classifier, with_constant_images(), attack=attack, verbose=0)
    plain = kr.evaluation.rho(classifier, X, attack=attack, verbose=0)
    assert plain / 2 < found < 2 * plain
