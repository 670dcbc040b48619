"""Nearest neighbours agree with sorting all distances in NumPy."""

import keras
import numpy as np
import pytest
from keras import ops

import keras_robust as kr
from keras_robust.neighbors import scann
from keras_robust.ops import nearest as module
from keras_robust.ops.nearest import nearest, nearest_in_two_ways, smallest, squared_distances

pytestmark = pytest.mark.gpu


def all_distances(queries, points):
    return ((queries[:, None].astype(float) - points[None]) ** 2).sum(axis=2)


def gaussians(count, dimensions=6, seed=0):
    return np.random.default_rng(seed).normal(size=(count, dimensions)).astype("float32")


@pytest.mark.parametrize("num_points", [1, 50, 32768, 32769, 70000])
@pytest.mark.parametrize("count", [1, 30])
def test_exact_index_agrees_with_brute_force(num_points, count):
    points, queries = gaussians(num_points), gaussians(7, seed=1)
    count = min(count, num_points)
    distances, indices = kr.neighbors.ExactIndex(points).search(queries, count)
    expected = all_distances(queries, points)
    np.testing.assert_array_equal(indices, np.argsort(expected, axis=1)[:, :count])
    np.testing.assert_allclose(distances, np.sort(expected, axis=1)[:, :count], rtol=1e-4)
    assert distances.dtype == np.float32


def test_all_points_may_be_neighbours():
    points = gaussians(40)
    _, indices = kr.neighbors.ExactIndex(points).search(points, 40)
    np.testing.assert_array_equal(np.sort(indices, axis=1), np.tile(np.arange(40), (40, 1)))
    np.testing.assert_array_equal(indices[:, 0], np.arange(40))


def test_more_queries_than_a_batch():
    points, queries = gaussians(20), gaussians(1500, seed=1)
    index = kr.neighbors.ExactIndex(points)
    distances, indices = index.search(queries, 3)
    assert distances.shape == indices.shape == (1500, 3)
    np.testing.assert_array_equal(indices, np.argsort(all_distances(queries, points))[:, :3])
    np.testing.assert_array_equal(index.search(queries[-5:], 3)[1], indices[-5:])


def test_ties_and_duplicates():
    """Any of the equally near points may be found, but each only once."""
    points = np.repeat(gaussians(10), 2000, axis=0)
    distances, indices = kr.neighbors.ExactIndex(points).search(points[::2000], 30)
    np.testing.assert_array_equal(distances, 0)
    np.testing.assert_array_equal(indices // 2000, np.tile(np.arange(10)[:, None], (1, 30)))
    assert all(len(set(row)) == 30 for row in indices.tolist())


def test_points_far_from_the_origin():
    points = gaussians(200) + 3000
    distances, indices = kr.neighbors.ExactIndex(points).search(points[:5] + 0.5, 8)
    expected = all_distances(points[:5] + np.float32(0.5), points)
    np.testing.assert_array_equal(indices, np.argsort(expected, axis=1)[:, :8])
    np.testing.assert_allclose(distances, np.sort(expected, axis=1)[:, :8], rtol=1e-4)


@pytest.mark.parametrize("seed", range(12))
def test_smallest_agrees_with_sorting(seed):
    rng = np.random.default_rng(seed)
    width = int(rng.integers(1, 3000))
    count = int(rng.integers(1, min(width, 40) + 1))
    # Odd seeds have many ties and infinite values. The columns of infinite values are arbitrary.
    values = rng.normal(size=(3, width)).astype("float32")
    if seed % 2:
        values = np.where(rng.random((3, width)) < 0.5, np.inf, np.round(values)).astype("float32")
    found, columns = (
        ops.convert_to_numpy(a) for a in smallest(ops.convert_to_tensor(values), count)
    )
    np.testing.assert_array_equal(found, np.sort(values, axis=1)[:, :count])
    finite = found < np.inf
    padded = np.pad(values, [(0, 0), (0, 16)], constant_values=np.inf)
    np.testing.assert_array_equal(
        np.take_along_axis(padded, columns, axis=1)[finite], found[finite]
    )
    assert all(len(set(row)) == count for row in columns.tolist())


def test_smallest_in_groups_and_at_once_agree(monkeypatch):
    values = ops.convert_to_tensor(
        np.random.default_rng(0).normal(size=(5, 3000)).astype("float32")
    )
    in_groups = [ops.convert_to_numpy(a) for a in smallest(values, 30)]
    monkeypatch.setattr(module, "_GROUP", 10**6)
    at_once = [ops.convert_to_numpy(a) for a in smallest(values, 30)]
    np.testing.assert_array_equal(in_groups, at_once)


@pytest.mark.parametrize("block", [32768, 32])
def test_nearest_excludes_the_query_itself(block, monkeypatch):
    monkeypatch.setattr(module, "_BLOCK", block)
    points, rows = gaussians(100), np.arange(40, 60)
    tensors = ops.convert_to_tensor(points[rows]), ops.convert_to_tensor(points)
    distances, indices = nearest(*tensors, 5, first=40)
    expected = all_distances(points[rows], points)
    expected[np.arange(20), rows] = np.inf
    np.testing.assert_array_equal(indices, np.argsort(expected, axis=1)[:, :5])
    np.testing.assert_allclose(distances, np.sort(expected, axis=1)[:, :5], rtol=1e-4)


@pytest.mark.parametrize("block", [32768, 32])
def test_nearest_in_two_ways(block, monkeypatch):
    monkeypatch.setattr(module, "_BLOCK", block)
    queries, points = gaussians(20), gaussians(100, seed=1)
    scale = np.random.default_rng(1).uniform(0.5, 2, 100).astype("float32")
    tensors = (ops.convert_to_tensor(values) for values in (queries, points))
    found = nearest_in_two_ways(*tensors, 5, ops.convert_to_tensor(scale), 9)
    expected = all_distances(queries, points)
    orders = np.argsort(expected, axis=1)[:, :5], np.argsort(expected / scale, axis=1)[:, :9]
    for distances, indices, order in zip(found[::2], found[1::2], orders, strict=True):
        np.testing.assert_array_equal(indices, order)
        true = np.take_along_axis(expected, order, axis=1)
        np.testing.assert_allclose(distances, true, rtol=1e-4)


def test_many_queries_are_searched_in_parts(monkeypatch):
    points = ops.convert_to_tensor(gaussians(50))
    at_once = [ops.convert_to_numpy(a) for a in nearest(points, points, 5, 0)]
    monkeypatch.setattr(module, "_MAX_ROWS", 16)
    in_parts = [ops.convert_to_numpy(a) for a in nearest(points, points, 5, 0)]
    np.testing.assert_array_equal(in_parts[1], at_once[1])
    np.testing.assert_allclose(in_parts[0], at_once[0], rtol=1e-5)


def test_missing_neighbours_are_infinitely_far():
    points = ops.convert_to_tensor(gaussians(3))
    distances, indices = (ops.convert_to_numpy(a) for a in nearest(points, points, 5, 0))
    assert np.isfinite(distances[:, :2]).all()
    assert np.isinf(distances[:, 2:]).all()
    np.testing.assert_array_equal(indices[:, 2:], 0)


@pytest.mark.parametrize("block", [32768, 32])
def test_excluded_points_are_not_neighbours(block, monkeypatch):
    monkeypatch.setattr(module, "_BLOCK", block)
    points = gaussians(100)
    is_point = np.arange(100) % 3 > 0
    included = np.flatnonzero(is_point)
    found = nearest(*map(ops.convert_to_tensor, (points, points)), 5, 0, is_point)
    expected = all_distances(points, points)
    np.fill_diagonal(expected, np.inf)
    order = np.argsort(expected[:, included], axis=1)[:, :5]
    np.testing.assert_array_equal(ops.convert_to_numpy(found[1]), included[order])


def test_squared_distances_propagate_nan():
    x = gaussians(4)
    x[1, 0] = np.nan
    distances = ops.convert_to_numpy(squared_distances(*[ops.convert_to_tensor(x)] * 2))
    np.testing.assert_array_equal(np.isnan(distances), np.isnan(x[:, :1] + x[:, 0]))


def test_squared_distances_of_duplicates_are_zero():
    x = ops.convert_to_tensor(100 * gaussians(50))
    distances = ops.convert_to_numpy(squared_distances(x, x))
    np.testing.assert_array_equal(np.diag(distances), 0)
    assert (distances >= 0).all()


def test_float64_is_kept():
    if keras.backend.backend() == "jax":
        pytest.skip("JAX has float64 only if it was enabled first")
    points = np.random.default_rng(0).normal(size=(30, 4))
    distances, _ = kr.neighbors.ExactIndex(points).search(points[:3] + 1e-3, 4)
    assert distances.dtype == np.float64
    expected = np.sort(all_distances(points[:3] + 1e-3, points), axis=1)[:, :4]
    np.testing.assert_allclose(distances, expected, rtol=1e-9)


@pytest.mark.parametrize("index", [kr.neighbors.ExactIndex, kr.neighbors.ScannIndex])
@pytest.mark.parametrize(
    "points",
    [
        np.zeros(3),
        np.zeros((0, 3)),
        np.full((2, 3), np.nan),
        # Their squares overflow in float32 or float64.
        np.full((2, 3), 1e25, "float32"),
        np.full((2, 3), 1e300),
    ],
)
def test_bad_points(index, points):
    with pytest.raises(ValueError, match="Argument `points` must"):
        index(points)


@pytest.mark.parametrize(
    ("queries", "num_neighbors", "message"),
    [
        (np.zeros((2, 4)), 1, "`queries` must have the shape"),
        (np.full((2, 3), np.inf), 1, "`queries` must hold finite"),
        (np.full((2, 3), 1e300), 1, "`queries` must hold finite.* 2 rows"),
        (np.zeros((2, 3)), 6, "`num_neighbors` must be at most .* 5"),
        (np.zeros((2, 3)), 0, "num_neighbors"),
    ],
)
def test_bad_searches(queries, num_neighbors, message):
    with pytest.raises(ValueError, match=message):
        kr.neighbors.ExactIndex(np.zeros((5, 3))).search(queries, num_neighbors)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_neighbors": 41}, "at most"),
        ({"num_neighbors": 0}, "num_neighbors"),
        ({"search_share": 0.0}, "search_share"),
        ({"search_share": 1.5}, "search_share"),
    ],
)
def test_bad_arguments_of_scann(arguments, message):
    with pytest.raises(ValueError, match=message):
        kr.neighbors.ScannIndex(gaussians(40), **arguments)


def test_scann():
    """ScaNN works, or the error says why it does not."""
    try:
        index = kr.neighbors.ScannIndex(gaussians(500), 10)
    except ImportError:
        is_jax = keras.backend.backend() == "jax"
        with pytest.raises(ImportError, match="backend" if is_jax else r"keras_robust\[scann\]"):
            scann._scann()
    else:
        assert index.recall(gaussians(20, seed=1)) == 1.0
