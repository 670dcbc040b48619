"""Augmentation layers in the model: attack and training step use the same augmentation."""

import itertools

import keras
import numpy as np
import pytest

import keras_robust as kr

pytestmark = pytest.mark.slow_on_jax

rng = np.random.default_rng(0)
EPSILON = 0.1
KERNEL = rng.normal(size=(8, 3))
X, Y = rng.random((4, 1, 8, 1), "float32"), np.array([0, 1, 2, 0])


def make(*layers, kernel=KERNEL):
    """Returns a linear classifier after `layers`."""
    head = keras.layers.Dense(3, use_bias=False)
    model = keras.Sequential([keras.Input((1, 8, 1)), *layers, keras.layers.Flatten(), head])
    head.kernel.assign(kernel)
    return model


def loss_of_a_step(loss, model, seed=0):
    """Returns the loss of a step with a learning rate of 0."""
    robust = kr.RobustModel(model, seed=seed)
    robust.compile(keras.optimizers.SGD(0.0), loss, metrics=["accuracy"])
    return robust.fit(X, Y, shuffle=False, verbose=0).history["loss"][0]


def log_p(x):
    z = x.reshape(len(x), -1).astype("float64") @ KERNEL
    return z - np.log(np.exp(z).sum(axis=1, keepdims=True))


def attacked_loss(x):
    """Computes the cross-entropy of each image attacked by FGSM."""
    p = np.exp(log_p(x))
    gradient = ((p - np.eye(3)[Y]) @ KERNEL.T).reshape(x.shape)
    moved = np.clip(x + EPSILON * np.sign(gradient), 0, 1)
    return -log_p(moved)[np.arange(4), Y]


BLOCKS = {
    "layer": lambda: [keras.layers.RandomFlip("horizontal", seed=1)],
    "nested model": lambda: [keras.Sequential([keras.layers.RandomFlip("horizontal", seed=1)])],
    "behind a rescaling": lambda: [
        keras.layers.Rescaling(1.0), keras.layers.RandomFlip("horizontal", seed=1)
    ],
}  # fmt: skip


@pytest.mark.parametrize("block", BLOCKS.values(), ids=BLOCKS)
def test_the_attack_uses_the_augmentation_of_the_step(block):
    upright, flipped = attacked_loss(X), attacked_loss(X[:, :, ::-1])
    # Each of 4 images is flipped or not, so the mean is one of 16 numbers.
    flips = np.array(list(itertools.product([False, True], repeat=4)))
    possible = np.where(flips, flipped, upright).mean(axis=1)
    attack = kr.attacks.FGSM(EPSILON)
    found = [
        loss_of_a_step(kr.losses.AdversarialTraining(attack), make(*block()), seed=seed)
        for seed in range(3)
    ]
    assert np.abs(np.subtract.outer(found, possible)).min(axis=1).max() < 1e-5
    assert len(set(np.round(found, 5))) > 1


LAYERS = {
    "flip": lambda: keras.layers.RandomFlip("horizontal"),
    "translation": lambda: keras.layers.RandomTranslation(0.0, 0.3),
    "brightness": lambda: keras.layers.RandomBrightness(0.5, value_range=(0, 1)),
    "erasing": lambda: keras.layers.RandomErasing(1.0, value_range=(0, 1)),
    "pipeline": lambda: keras.layers.Pipeline([keras.layers.RandomFlip("horizontal")]),
}
# Losses with a perturbation of nearly 0.
LOSSES = {
    "TRADES": lambda beta: kr.losses.TRADES(
        kr.attacks.PGD(1e-6, num_steps=1), beta=beta, start_stddev=1e-6
    ),
    "StabilityTraining": lambda beta: kr.losses.StabilityTraining(beta, stddev=1e-6),
}


@pytest.mark.slow
@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_both_images_of_a_pair_have_the_same_augmentation(layer, loss):
    plain = loss_of_a_step(loss(0.0), make(layer()))
    weighted = loss_of_a_step(loss(1000.0), make(layer()))
    assert weighted == pytest.approx(plain, abs=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
def test_both_halves_of_a_batch_of_pairs_have_the_same_augmentation(layer):
    attack = kr.attacks.FGSM(1e-6)
    model = make(layer(), keras.layers.Flatten(), keras.layers.Dense(8))
    disparity = loss_of_a_step(kr.losses.LatentDisparity(attack, weight=1.0), model)
    assert disparity < 1e-4


@pytest.mark.slow
def test_deep_defense_uses_the_augmentation_of_the_step():
    def losses_of_examples(images):
        robust = kr.RobustModel(make())
        robust.compile(keras.optimizers.SGD(0.0), kr.losses.DeepDefense())
        return [
            4 * robust.fit(images, Y, sample_weight=weights, shuffle=False, verbose=0)
            .history["loss"][0]
            for weights in np.eye(4)
        ]  # fmt: skip

    flips = np.array(list(itertools.product([False, True], repeat=4)))
    possible = np.where(flips, losses_of_examples(X[:, :, ::-1]), losses_of_examples(X)).mean(
        axis=1
    )
    layer = keras.layers.RandomFlip("horizontal", seed=1)
    found = loss_of_a_step(kr.losses.DeepDefense(), make(layer))
    assert np.abs(possible - found).min() < 1e-4 * found
