"""End-to-end adversarial training of a WNLL head learns CIFAR-10, with a growing radius."""

import os

import keras
import numpy as np
import pytest

import keras_robust as kr

L = keras.layers
EPSILON = 8 / 255
NUM_TRAIN, NUM_TEST, BATCH, EPOCHS = 5000, 500, 250, 16


@pytest.fixture(scope="module")
def cifar10():
    data_dir = os.environ.get("TFDS_DATA_DIR")
    if not data_dir or not os.path.isdir(os.path.join(data_dir, "cifar10_jpeg")):
        pytest.skip("needs CIFAR-10: set TFDS_DATA_DIR to a folder that holds cifar10_jpeg")
    pytest.importorskip("tensorflow_datasets", reason="reads the full CIFAR-10")

    def first(split, count):
        data = kr.datasets.load("cifar10_jpeg", split, data_dir=data_dir)
        return next(data.batch(count).as_numpy_iterator())

    return first("train", NUM_TRAIN), first("test", NUM_TEST)


@pytest.mark.slow
def test_end_to_end_training_learns(cifar10):
    (x, y), (x_test, y_test) = cifar10
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((32, 32, 3)),
            L.Conv2D(32, 5, strides=2, padding="same", activation="relu"),
            L.Conv2D(64, 5, strides=2, padding="same", activation="relu"),
            L.Flatten(),
            L.Dense(64, activation="relu"),
            kr.layers.WNLLHead(10, template_size=1000),
        ]
    )
    growing = keras.optimizers.schedules.PolynomialDecay(
        0.0, EPOCHS * NUM_TRAIN // BATCH // 2, EPSILON
    )
    loss = kr.losses.GraphInterpolation(num_folds=2, attack=kr.attacks.PGD(growing, num_steps=5))
    robust = kr.RobustModel(model, seed=0)
    robust.compile("adam", loss, metrics=["accuracy"])
    history = robust.fit(x, y, batch_size=BATCH, epochs=EPOCHS, verbose=0).history
    report = kr.evaluate(
        robust, x_test, y_test, [kr.attacks.PGD(EPSILON, num_steps=20)], batch_size=BATCH,
        verbose=0, checks=False,
    )  # fmt: skip
    assert np.isfinite(history["loss"]).all()
    # Random guesses exceed 14% on so many images with a probability of 0.1%.
    assert report.accuracy("worst case") > 0.14
    assert report.accuracy("clean") > 0.3
