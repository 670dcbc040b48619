"""WNLL agrees with GraphLearning, Calder's package, where both solve the same equations.

For symmetric weights W, the package uses `A W + W A` with a diagonal A that is N / t on labeled
points and 1 elsewhere, and solves

    sum_y (a(x) + a(y)) w(x, y) (u(x) - u(y)) = 0

for each unlabeled x. The factor is 2 if y is unlabeled and 1 + N / t if it is labeled. In equation
5 the factors are 2 and 2 + gamma, which are equal to these for the default gamma = N / t - 1.
Without reweighting all factors are 1, which corresponds to gamma = 0.
"""

import keras
import numpy as np
import pytest
from keras import ops
from reference_wnll import weights as directed_weights

import keras_robust as kr
from keras_robust.ops.interpolation import interpolate
from keras_robust.ops.neighbor_graph import Edges

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        keras.backend.backend() == "jax",
        reason="JAX has float64 only if it was enabled first",
    ),
    # The package and its dependencies cause deprecation warnings.
    pytest.mark.filterwarnings("ignore"),
]

NUM_POINTS, NUM_CLASSES = 60, 3
REWEIGHTINGS = [(None, "wnll"), (0.0, "none")]


@pytest.fixture
def laplace():
    """Returns the package's Laplace learning, which computes u on all points."""
    peer = pytest.importorskip("graphlearning", reason="GraphLearning is in the extra `peers`")

    def fit(weights, rows, labels, reweighting):
        model = peer.ssl.laplace(weights, reweighting=reweighting, tol=1e-12)
        return model.fit(rows, labels)

    return fit


def split(num_template=15, seed=0):
    """Returns the rows of queries and template, and the template's labels."""
    order = np.random.default_rng(seed).permutation(NUM_POINTS)
    return order[num_template:], order[:num_template], np.arange(num_template) % NUM_CLASSES


def assert_same(u, expected):
    np.testing.assert_allclose(ops.convert_to_numpy(u), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize(("gamma", "reweighting"), REWEIGHTINGS)
@pytest.mark.parametrize(("m", "n"), [(8, 4), (NUM_POINTS - 1, 20)])
def test_agrees_on_a_regular_polygon(laplace, m, n, gamma, reweighting):
    """All points have the same sigma and symmetric neighbours, so the weights are symmetric."""
    angles = 2 * np.pi * np.arange(NUM_POINTS) / NUM_POINTS
    points = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    steps = abs(np.arange(NUM_POINTS)[:, None] - np.arange(NUM_POINTS))
    steps = np.minimum(steps, NUM_POINTS - steps)
    ratio = np.sin(np.pi * steps / NUM_POINTS) / np.sin(np.pi * (n // 2) / NUM_POINTS)
    weights = np.exp(-(ratio**2)) * (steps > 0) * (steps <= (m + 1) // 2)

    queries, template, labels = split()
    u = kr.ops.wnll(points[queries], points[template], labels, m, n, template_weight=gamma)
    assert_same(u, laplace(weights, template, labels, reweighting)[queries])


@pytest.mark.parametrize(("gamma", "reweighting"), REWEIGHTINGS)
def test_agrees_on_a_graph_of_the_package(laplace, gamma, reweighting):
    peer = pytest.importorskip("graphlearning", reason="GraphLearning is in the extra `peers`")
    points = np.random.default_rng(0).normal(size=(NUM_POINTS, 3))
    graph = peer.weightmatrix.knn(points, 8).tocoo()
    _, template, labels = split()
    values = np.zeros((NUM_POINTS, NUM_CLASSES))
    values[template, labels] = 1
    if gamma is None:
        gamma = NUM_POINTS / len(template) - 1
    edges = Edges(*(ops.convert_to_tensor(part) for part in (graph.row, graph.col, graph.data)))
    is_known = ops.convert_to_tensor(values.any(axis=1))
    u = interpolate(edges, ops.convert_to_tensor(values), is_known, NUM_POINTS, gamma)
    assert_same(u, laplace(graph, template, labels, reweighting))


@pytest.mark.parametrize("gamma", [None, 0.0, 2.0])
@pytest.mark.parametrize("kernel", ["gaussian", "quartic"])
def test_agrees_on_a_directed_graph(laplace, kernel, gamma):
    """Eq. 5 is Laplace learning with symmetric weights B W + W^T B, B = 1 or 1 + gamma."""
    points = np.random.default_rng(0).normal(size=(NUM_POINTS, 3))
    queries, template, labels = split()
    u = kr.ops.wnll(points[queries], points[template], labels, 8, 4, kernel, template_weight=gamma)
    factor = np.ones((NUM_POINTS, 1))
    factor[template] += NUM_POINTS / len(template) - 1 if gamma is None else gamma
    scaled = factor * directed_weights(points, 8, 4, kernel)
    assert_same(u, laplace(scaled + scaled.T, template, labels, "none")[queries])
