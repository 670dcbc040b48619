"""Tensor functions agree with NumPy."""

import numpy as np
import pytest
from keras import ops

from keras_robust.ops.balls import projection, steepest_direction
from keras_robust.ops.labels import sparse_labels
from keras_robust.ops.logits import (
    log_odds_against,
    log_probabilities,
    margin,
    probabilities_to_logits,
)
from keras_robust.ops.simplex import simplex_gram

RNG = np.random.default_rng(0)


def numpy(x):
    return ops.convert_to_numpy(x)


def test_log_odds_and_margin():
    logits = RNG.normal(size=(6, 4)).astype("float32") * 3
    y = np.array([0, 1, 2, 3, 0, 1])
    p = np.exp(logits.astype("float64"))
    p /= p.sum(1, keepdims=True)
    p_y = p[np.arange(6), y]
    expected = np.log(1 - p_y) - np.log(p_y)
    np.testing.assert_allclose(numpy(log_odds_against(logits, y)), expected, atol=1e-5)
    others = np.where(np.eye(4, dtype=bool)[y], -np.inf, logits).max(1)
    np.testing.assert_allclose(
        numpy(margin(logits, y)), others - logits[np.arange(6), y], atol=1e-6
    )


def test_log_odds_do_not_saturate():
    logits = np.array([[3000.0, 0.0, -500.0]], "float32")
    np.testing.assert_allclose(numpy(log_odds_against(logits, np.array([0]))), [-3000.0])


def test_log_of_probabilities():
    p = np.array([[0.7, 0.3, 0.0]], "float32")
    logits = numpy(probabilities_to_logits(p))
    assert np.isfinite(logits).all()
    np.testing.assert_allclose(np.exp(logits), p, atol=1e-7)
    logits = RNG.normal(size=(5, 3)).astype("float32")
    softmax = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    np.testing.assert_allclose(numpy(log_probabilities(logits, True)), np.log(softmax), atol=1e-6)
    np.testing.assert_allclose(numpy(log_probabilities(softmax, False)), np.log(softmax), atol=1e-6)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_steepest_direction_maximises_the_inner_product(norm, scale):
    gradient = (RNG.normal(size=(5, 3, 3, 1)) * scale).astype("float32")
    direction = numpy(steepest_direction(gradient, norm)).reshape(5, -1).astype("float64")
    flat = gradient.reshape(5, -1).astype("float64")
    # The maximum over the unit ball is the dual norm.
    dual = np.linalg.norm(flat, {"linf": 1, "l2": 2, "l1": np.inf}[norm], axis=1)
    np.testing.assert_allclose((direction * flat).sum(1), dual, rtol=1e-5)
    radius = np.linalg.norm(direction, {"linf": np.inf, "l2": 2, "l1": 1}[norm], axis=1)
    np.testing.assert_allclose(radius, 1, rtol=1e-5)
    np.testing.assert_array_equal(numpy(steepest_direction(0 * gradient, norm)), 0)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_projection_is_the_nearest_point(norm):
    x = RNG.uniform(0.4, 0.6, (20, 2, 2, 1)).astype("float32")
    far = x + RNG.normal(size=x.shape).astype("float32")
    point = numpy(projection(x, 0.2, norm, (0.0, 1.0))(far))
    candidates = RNG.uniform(-0.2, 0.2, (20000, 1, 2, 2, 1)).astype("float32")
    if norm == "l2":
        candidates = candidates[np.linalg.norm(candidates.reshape(20000, -1), axis=1) <= 0.2]
    distance = np.linalg.norm((x + candidates - far).reshape(len(candidates), 20, -1), axis=2)
    projected_distance = np.linalg.norm((point - far).reshape(20, -1), axis=1)
    assert (projected_distance <= distance.min(0) + 1e-6).all()
    inside = x + 0.05 * (far - x) / abs(far - x).max()
    np.testing.assert_allclose(
        numpy(projection(x, 0.2, norm, (0.0, 1.0))(inside)), inside, atol=1e-7
    )


def test_sparse_labels():
    y = np.array([2, 0, 1])
    for labels in (y, y[:, None], np.eye(3)[y]):
        np.testing.assert_array_equal(numpy(sparse_labels(labels)), y)


@pytest.mark.parametrize("num_classes", [2, 3, 10])
def test_simplex_gram_agrees_with_a_regular_simplex(num_classes):
    # The vertices are the centred standard basis, scaled to length s.
    vertices = np.eye(num_classes) - 1 / num_classes
    vertices *= 0.3 / np.linalg.norm(vertices[0])
    np.testing.assert_allclose(simplex_gram(num_classes, 0.3), vertices @ vertices.T, atol=1e-12)
