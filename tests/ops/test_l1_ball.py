"""The L1 ball with bounds: projection, random points and sparse steps."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_robust import backend
from keras_robust.ops.balls import (
    movable,
    projection,
    random_in_ball,
    steepest_direction,
    steepest_step,
)

BOUNDS = (-0.5, 1.0)


def numpy(tensor):
    return ops.convert_to_numpy(tensor).astype("float64")


def nearest(x, far, epsilon, low, high):
    """Computes the exact projection of one point, by sorting the breakpoints of its length."""
    u = far - x
    room = np.where(u > 0, high - x, x - low)

    def length(threshold):
        return np.minimum(np.maximum(abs(u) - threshold, 0), room).sum()

    threshold = 0.0
    if length(0) > epsilon:
        breakpoints = np.unique(np.concatenate([[0], np.maximum(abs(u) - room, 0), abs(u)]))
        lengths = np.array([length(place) for place in breakpoints])
        last = np.flatnonzero(lengths > epsilon)[-1]
        share = (lengths[last] - epsilon) / (lengths[last] - lengths[last + 1])
        threshold = breakpoints[last] + share * (breakpoints[last + 1] - breakpoints[last])
    return x + np.sign(u) * np.minimum(np.maximum(abs(u) - threshold, 0), room)


def points(rng, num, size, scale, dtype="float32"):
    """Returns points with some values at the bounds, and other points at a distance `scale`."""
    x = rng.uniform(*BOUNDS, (num, size))
    x = np.where(rng.random(x.shape) < 0.3, rng.choice(BOUNDS, x.shape), x).astype(dtype)
    return x, (x + scale * rng.standard_t(3, x.shape)).astype(dtype)


def projected(x, far, epsilon, bounds=BOUNDS):
    return numpy(projection(ops.convert_to_tensor(x), epsilon, "l1", bounds)(far))


@pytest.mark.parametrize("rest", [1e-5, 1e-4, 1e-2])
def test_the_next_value_takes_what_a_bound_leaves_of_the_radius(rest):
    x = np.zeros((1, 100), "float32")
    x[0, 0] = BOUNDS[1] - (0.5 - rest)
    far = x + np.linspace(0.1, 15, 100, dtype="float32")[::-1]
    far[0, 0] = 20.0
    moved = projected(x, far, 0.5) - x
    np.testing.assert_allclose(moved[0, :2], [0.5 - rest, rest], atol=2e-6)
    np.testing.assert_allclose(moved.sum(), 0.5, atol=2e-6)


@pytest.mark.parametrize("size", [1, 7, 3072])
@pytest.mark.parametrize("scale", [0.01, 1.0, 10.0])
@pytest.mark.parametrize("epsilon", [1e-3, 0.5, 12.0])
def test_projection_is_the_nearest_point(size, scale, epsilon):
    rng = np.random.default_rng()
    x, far = points(rng, 8, size, scale)
    found = projected(x, far, epsilon)
    exact = x.astype("float64"), far.astype("float64")
    expected = [nearest(a, b, epsilon, *BOUNDS) for a, b in zip(*exact, strict=True)]
    # The tolerance includes the rounding of the difference of the points.
    np.testing.assert_allclose(found, expected, atol=4e-7 * max(1, abs(far).max()))
    assert abs(found - exact[0]).sum(axis=1).max() <= epsilon + 1e-7 * size**0.5 * max(1, epsilon)
    assert found.min() >= BOUNDS[0]
    assert found.max() <= BOUNDS[1]


def test_projection_in_float64():
    if keras.backend.backend() == "jax":
        pytest.skip("JAX computes in float32 unless its x64 mode is on")
    x, far = points(np.random.default_rng(), 8, 300, 1.0, "float64")
    found = projected(x, far, 2.0)
    assert found.dtype == "float64"
    expected = [nearest(a, b, 2.0, *BOUNDS) for a, b in zip(x, far, strict=True)]
    np.testing.assert_allclose(found, expected, atol=1e-8)
    np.testing.assert_allclose(abs(found - x).sum(axis=1), 2.0, rtol=1e-8)


def test_projection_in_closed_form():
    x = np.zeros((5, 4), "float32")
    far = np.array([
        [3.0, 0, 0, 0],  # One value changes by the radius.
        [3.0, 2.0, 0, 0],  # Two values are reduced by the same amount.
        [0.9, -0.1, 0.2, -0.3],  # Small values do not change.
        [9.0, 0, -9.0, 0],
        [0.1, 0.1, -0.1, 0],  # A point in the ball does not change.
    ])  # fmt: skip
    expected = [
        [0.8, 0, 0, 0],
        [0.8, 0, 0, 0],
        [0.7, 0, 0, -0.1],
        [0.4, 0, -0.4, 0],
        [0.1, 0.1, -0.1, 0],
    ]
    found = projected(x, far.astype("float32"), 0.8)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    narrow = projected(x, far.astype("float32"), 0.8, (-0.25, 0.5))
    np.testing.assert_allclose(narrow[0], [0.5, 0, 0, 0])
    np.testing.assert_allclose(narrow[1], [0.5, 0.3, 0, 0], atol=1e-6)
    np.testing.assert_allclose(narrow[3], [0.5, 0, -0.25, 0])


def test_a_radius_of_0_gives_the_image():
    x, far = points(np.random.default_rng(), 8, 50, 1.0)
    np.testing.assert_array_equal(projected(x, far, 0.0), x)


def test_bounds_for_each_value():
    rng = np.random.default_rng()
    x, far = points(rng, 8, 50, 1.0)
    low = np.where(rng.random(x.shape) < 0.3, x, -np.inf)  # Some values can only increase.
    high = np.where(rng.random(x.shape) < 0.5, x, x + 0.1)  # Some of them cannot change at all.
    bounds = tuple(ops.convert_to_tensor(bound.astype("float32")) for bound in (low, high))
    found = projected(x, far, 3.0, bounds)
    expected = [
        nearest(*(v.astype("float64") for v in (a, b)), 3.0, *limits)
        for a, b, *limits in zip(x, far, low, high, strict=True)
    ]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    is_fixed = (low == x) & (high == x)
    np.testing.assert_array_equal(found[is_fixed], x[is_fixed])


def test_nan_only_affects_its_example():
    x, far = points(np.random.default_rng(), 3, 50, 1.0)
    far[1, 7] = np.nan
    found = projected(x, far, 1.0)
    assert np.isnan(found[1]).any()
    np.testing.assert_array_equal(found[[0, 2]], projected(x[[0, 2]], far[[0, 2]], 1.0))


@pytest.mark.parametrize("is_masked", [False, True])
def test_random_points_are_uniform_in_the_ball(is_masked):
    size, num, epsilon = 5, 20_000, 3.0
    x = ops.convert_to_tensor(np.full((num, size), 0.5, "float32"))
    bounds = (-9.0, 9.0)
    free = np.ones(size, bool)
    if is_masked:
        free[1] = False
        low = np.broadcast_to(np.where(free, -9.0, 0.5), (num, size)).astype("float32")
        bounds = ops.convert_to_tensor(low), ops.convert_to_tensor(1 - low)
    seed = backend.make_seed(np.random.default_rng().integers(2**31))
    delta = numpy(random_in_ball(x, epsilon, "l1", seed, bounds)) - 0.5
    assert (delta[:, ~free] == 0).all()
    delta, count = delta[:, free], free.sum()
    # The share of the volume inside the radius r is (r / epsilon)^d.
    share = (abs(delta).sum(axis=1) / epsilon) ** count
    assert share.max() <= 1 + 1e-5
    np.testing.assert_allclose(np.quantile(share, [0.25, 0.5, 0.75]), [0.25, 0.5, 0.75], atol=0.03)
    # |delta_i| / epsilon is distributed like the smallest of d uniform numbers.
    smallest = (1 - abs(delta[:, 0]) / epsilon) ** count
    quantiles = np.quantile(smallest, [0.25, 0.5, 0.75])
    np.testing.assert_allclose(quantiles, [0.25, 0.5, 0.75], atol=0.03)
    assert abs((delta > 0).mean() - 0.5) < 0.02


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_sparse_steps_divide_their_length_equally(scale):
    rng = np.random.default_rng()
    gradient = (rng.normal(size=(6, 5, 4, 1)) * scale).astype("float32")
    counts = np.array([0.1, 1, 2.5, 7, 20, 99], "float32")
    found = numpy(steepest_direction(gradient, "l1", counts)).reshape(6, -1)
    flat = gradient.reshape(6, -1)
    for step, g, count in zip(
        found, flat, np.clip(np.ceil(counts), 1, 20).astype(int), strict=True
    ):
        largest = np.argsort(-abs(g))[:count]
        expected = np.zeros(20)
        expected[largest] = np.sign(g[largest]) / count
        np.testing.assert_allclose(step, expected, rtol=1e-6)
    np.testing.assert_array_equal(numpy(steepest_direction(0 * gradient, "l1", 3)), 0)
    few = np.where(abs(gradient) < scale, 0, gradient)
    found = numpy(steepest_direction(few, "l1", 20)).reshape(6, -1)
    assert ((found != 0) == (few.reshape(6, -1) != 0)).all()


def test_step_with_a_size_for_each_value():
    gradient = np.array([[3.0, -2.0, 1.0, 0.5]], "float32")
    size = np.array([[0.1, 1.0, 0.0, 2.0]], "float32")
    for count, expected in ((1, [0, -1.0, 0, 0]), (2, [0, -0.5, 0, 1.0])):
        step = numpy(steepest_step(gradient, ops.convert_to_tensor(size), "l1", count))
        np.testing.assert_allclose(step, [expected], atol=1e-7)


def test_values_at_a_bound_are_not_part_of_the_step():
    x = np.array([[0.0, 1.0, 0.0, 1.0, 0.5]], "float32")
    gradient = np.array([[1.0, 2.0, -3.0, -4.0, 5.0]], "float32")
    for rounding in (0, 1e-7):
        near = x + rounding * np.array([[0, -1, 1, 0, 0]], "float32")
        can_move = movable(gradient, near, 0.5, (0.0, 1.0))
        np.testing.assert_array_equal(can_move, [[True, False, False, True, True]])
        for count, expected in ((2, [0, 0, 0, -0.5, 0.5]), (3, np.sign(gradient[0]) / 3)):
            found = steepest_direction(gradient, "l1", count, can_move)
            np.testing.assert_allclose(numpy(found), [expected], rtol=1e-6)


def test_nan_in_the_gradient_gives_nan():
    gradient = ops.convert_to_tensor(np.array([[1, np.nan, -3, 0], [1, 2, -3, 0]], "float32"))
    direction = ops.convert_to_numpy(steepest_direction(gradient, "l1", 2))
    assert np.isnan(direction[0]).any()
    np.testing.assert_array_equal(direction[1], [0, 0.5, -0.5, 0])
