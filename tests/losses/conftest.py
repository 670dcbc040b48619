"""Shared code of the tests of losses: a linear classifier in Keras and in NumPy."""

import types

import keras
import numpy as np
import pytest

import keras_robust as kr

RNG = np.random.default_rng(0)
X = RNG.uniform(0.3, 0.7, (12, 2, 3, 1)).astype("float32")
Y = np.arange(12) % 3
WEIGHTS = RNG.normal(size=(6, 3)).astype("float32")


def make_model(policy=None):
    model = keras.Sequential(
        [
            keras.Input((2, 3, 1)),
            keras.layers.Flatten(),
            keras.layers.Dense(3, use_bias=False, dtype=policy),
        ]
    )
    model.set_weights([WEIGHTS])
    return model


def log_softmax(x, weights=WEIGHTS):
    logits = x.reshape(len(x), -1).astype("float64") @ weights
    logits -= logits.max(1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(1, keepdims=True))


def cross_entropy(x, weights=WEIGHTS):
    return -log_softmax(x, weights)[np.arange(12), Y]


def fgsm(x, epsilon):
    gradient = (np.exp(log_softmax(x)) - np.eye(3)[Y]) @ WEIGHTS.T
    return x + epsilon * np.sign(gradient).reshape(x.shape)


def fit(loss, y=Y, learning_rate=0.0, epochs=1, model=None, eager=True, **arguments):
    """Trains on the whole batch. Returns the losses and the model. Eager mode avoids compiling."""
    robust = kr.RobustModel(model or make_model())
    robust.compile(optimizer=keras.optimizers.SGD(learning_rate), loss=loss, run_eagerly=eager)
    history = robust.fit(
        X, y, batch_size=12, shuffle=False, verbose=0, epochs=epochs, **arguments
    ).history
    return history["loss"], robust


def gradient(loss):
    """Returns the gradient of the loss with respect to the weights, from one SGD step."""
    return WEIGHTS - fit(loss, learning_rate=1.0)[1].get_weights()[0]


def numerical_gradient(function):
    """Returns the gradient of a function of the weights, by finite differences in float64."""
    slopes = np.zeros(WEIGHTS.shape)
    for index in np.ndindex(WEIGHTS.shape):
        step = np.zeros(WEIGHTS.shape)
        step[index] = 1e-6
        slopes[index] = (function(WEIGHTS + step) - function(WEIGHTS - step)) / 2e-6
    return slopes


@pytest.fixture(scope="session")
def linear():
    """Returns the classifier, its data and the NumPy functions."""
    return types.SimpleNamespace(
        x=X,
        y=Y,
        weights=WEIGHTS,
        make_model=make_model,
        log_softmax=log_softmax,
        cross_entropy=cross_entropy,
        fgsm=fgsm,
        fit=fit,
        gradient=gradient,
        numerical_gradient=numerical_gradient,
    )
