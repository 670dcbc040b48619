"""The graph from known neighbour lists equals the graph from a full search."""

import numpy as np
import pytest
from keras import ops

from keras_robust.ops.nearest import nearest
from keras_robust.ops.neighbor_graph import edges_of_union, union_edges

pytestmark = pytest.mark.gpu

CASES = [
    # Queries, template points, m, n.
    (40, 60, 8, 4), (1, 20, 8, 5), (60, 6, 8, 8), (5, 3, 30, 15), (30, 40, 1, 1), (3, 1, 2, 1),
    (2, 50, 30, 1),
]  # fmt: skip


def matrix(edges, num_queries, count):
    """Returns the matrix of weights. Those between template points have no effect and are 0."""
    source, target, weight = (ops.convert_to_numpy(part) for part in edges)
    found = np.zeros((count, count))
    np.add.at(found, (source, target), weight)
    found[num_queries:, num_queries:] = 0
    return found


@pytest.mark.slow_on_jax
@pytest.mark.parametrize("kernel", ["gaussian", "quartic"])
@pytest.mark.parametrize(("num_queries", "num_template", "m", "n"), CASES)
@pytest.mark.parametrize("share_left_out", [0.0, 0.3])
def test_edges_of_union_agree_with_a_full_search(
    num_queries, num_template, m, n, kernel, share_left_out
):
    rng = np.random.default_rng(num_queries)
    queries, template = (
        rng.normal(size=(count, 4)).astype("float32") for count in (num_queries, num_template)
    )
    is_query = rng.random(num_queries) >= share_left_out
    points = np.concatenate([queries, template])
    is_point = np.concatenate([is_query, np.ones(num_template, bool)])
    full_search = union_edges(*map(ops.convert_to_tensor, (points,)), m, n, kernel, is_point)
    tensors = [ops.convert_to_tensor(part) for part in (queries, template)]
    lists = nearest(tensors[1], tensors[1], m, 0)[0]
    found = edges_of_union(*tensors, lists, n, kernel, ops.convert_to_tensor(is_query))
    expected = matrix(full_search, num_queries, len(points))
    np.testing.assert_allclose(matrix(found, num_queries, len(points)), expected, atol=1e-5)
    assert not expected[:num_queries][~is_query].any()
    assert not expected[:, :num_queries][:, ~is_query].any()
