"""Models on which the smallest perturbations are known."""

import types

import keras
import numpy as np
import pytest
from keras import ops

import keras_robust as kr


class NearestBoundary(kr.attacks.Attack):
    """The smallest perturbation of an affine model `x W + b`, times `1 + overshoot`."""

    def __init__(self, kernel, bias, overshoot=0.0, norm="l2", bounds=(-10.0, 10.0)):
        super().__init__(bounds=bounds)
        self.kernel, self.bias, self.overshoot, self.norm = kernel, bias, overshoot, norm

    def get_config(self):
        return {"overshoot": self.overshoot}

    def generate(self, problem, x, start, index, seed):
        scores = ops.matmul(x, self.kernel) + self.bias
        label = ops.one_hot(problem.y, self.kernel.shape[1])
        normals = self.kernel[None] - ops.expand_dims(ops.matmul(label, self.kernel.T), -1)
        gaps = ops.sum(scores * label, 1, keepdims=True) - scores
        lengths = ops.sqrt(ops.sum(normals**2, 1))
        distances = ops.where(label > 0, 1e9, gaps / ops.maximum(lengths, 1e-9))
        nearest = ops.one_hot(ops.argmin(distances, axis=1), self.kernel.shape[1])
        distance = ops.sum(distances * nearest, axis=1)
        direction = ops.sum(normals * nearest[:, None], axis=2)
        direction = direction / ops.norm(direction, axis=1, keepdims=True)
        return x + ((1 + self.overshoot) * distance)[:, None] * direction, 1, 0


@pytest.fixture
def linear():
    """A linear model of 3 classes, its attack, images, and their distances to the boundary."""
    rng = np.random.default_rng(1)
    kernel, bias = rng.normal(size=(5, 3)).astype("float32"), np.array([0.1, 0.0, -0.1], "float32")
    model = keras.Sequential([keras.Input((5,)), keras.layers.Dense(3)])
    model.set_weights([kernel, bias])
    x = rng.normal(size=(60, 5)).astype("float32")
    scores = x.astype("float64") @ kernel + bias
    classes = scores.argmax(axis=1)
    distances = np.array(
        [
            min(
                (z[c] - z[j]) / np.linalg.norm(kernel[:, c].astype("float64") - kernel[:, j])
                for j in range(3)
                if j != c
            )
            for z, c in zip(scores, classes, strict=True)
        ]
    )

    def attack(**arguments):
        return NearestBoundary(kernel, bias, **arguments)

    return types.SimpleNamespace(
        model=model, attack=attack, x=x, classes=classes, distances=distances
    )


@pytest.fixture
def threshold():
    """Makes models of one pixel that predict class 1 where it is above a threshold."""

    def make(value):
        def model(x):
            z = 10 * (x[:, 0, 0, 0] - value)
            return ops.stack([-z, z], axis=1)

        return model

    return make


@pytest.fixture
def pixels():
    """40 images of one pixel, evenly spaced and not symmetric around 0.5, and their classes."""
    x = np.linspace(0.003, 0.983, 40, dtype="float32").reshape(40, 1, 1, 1)
    return x, (x[:, 0, 0, 0] > 0.5).astype("int32")
