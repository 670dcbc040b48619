"""Black images and images of one colour neither dominate training nor metrics."""

import keras
import numpy as np
import pytest

import keras_robust as kr

pytestmark = pytest.mark.slow_on_jax

RNG = np.random.default_rng(0)
CENTERS = RNG.uniform(0.2, 0.8, (3, 4, 4, 1))
Y = np.arange(120) % 3
X = np.clip(CENTERS[Y] + 0.15 * RNG.normal(size=(120, 4, 4, 1)), 0, 1).astype("float32")
# Constant images, like those from broken files, padding and empty tiles.
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
    """Trains a copy of the classifier for one epoch. Returns the loss and the copy."""
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
def test_deep_defense_with_constant_images(classifier, norm):
    loss = kr.losses.DeepDefense(weight=1.0, norm=norm)
    before = accuracy(classifier)
    assert before > 0.85
    plain, _ = fine_tuned(classifier, loss, X)
    with_constant, model = fine_tuned(classifier, loss, with_constant_images())
    # Each constant image counts at most like one whose perturbation is twice as long as it is.
    largest_penalty = np.exp(5) * (1 + 2 * 5 - 5)
    assert plain / 2 < with_constant < plain + len(CONSTANT) / len(X) * largest_penalty
    assert accuracy(model) > before - 0.05
    for old, new in zip(classifier.get_weights(), model.get_weights(), strict=True):
        assert abs(new - old).max() < 0.1


@pytest.mark.slow
def test_deep_defense_with_black_images_only(classifier):
    """In a batch of black images, the loss is bounded and hardly changes the weights."""
    black = np.zeros((8, 4, 4, 1), "float32")
    loss = kr.losses.DeepDefense(weight=1.0)
    for y in range(3):
        value, model = fine_tuned(classifier, loss, black, np.full(8, y), batch_size=8)
        assert 0 < value < 20 + np.exp(5) * (1 + 50 - 5)
        assert accuracy(model) > accuracy(classifier) - 0.05


def test_latent_disparity_per_sample_with_constant_images(classifier):
    """On black images, layers without biases have outputs of 0, which must not be divided by."""
    without_biases = keras.models.clone_model(classifier)
    without_biases.set_weights([w if w.ndim > 1 else 0 * w for w in classifier.get_weights()])
    attack = kr.attacks.FGSM(0.05)
    loss = kr.losses.LatentDisparity(attack, ratio="sample")
    plain, _ = fine_tuned(without_biases, loss, X)
    with_constant, model = fine_tuned(without_biases, loss, with_constant_images())
    assert with_constant < 2 * plain + 1
    assert accuracy(model) > accuracy(without_biases) - 0.05


def test_rho_with_constant_images(classifier):
    attack = kr.attacks.DeepFool(num_steps=50)
    with pytest.warns(UserWarning, match="4 of 120 images are nearly equal to `mean`"):
        found = kr.evaluation.rho(classifier, with_constant_images(), attack=attack, verbose=0)
    plain = kr.evaluation.rho(classifier, X, attack=attack, verbose=0)
    assert plain / 2 < found < 2 * plain
