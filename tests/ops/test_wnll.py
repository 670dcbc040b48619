"""WNLL agrees with golden values, a float64 reference and closed forms, and is invariant."""

import pathlib

import keras
import numpy as np
import pytest
from keras import ops
from reference_wnll import wnll as reference

import keras_robust as kr
from keras_robust import backend
from keras_robust.ops import interpolation

GOLDEN = pathlib.Path(__file__).parent / "golden"
# JAX has float64 only if it was enabled first.
DTYPES = ["float32", "float64"] if keras.backend.backend() == "tensorflow" else ["float32"]


def points(num_queries=40, num_template=60, dimensions=5, num_classes=3, seed=0):
    """Returns queries, a template and labels, with one cluster for each class."""
    rng = np.random.default_rng(seed)
    centers = 3 * rng.normal(size=(num_classes, dimensions))
    labels = np.arange(num_queries + num_template) % num_classes
    x = centers[labels] + rng.normal(size=(len(labels), dimensions))
    return x[:num_queries], x[num_queries:], labels[num_queries:]


def interpolated(queries, template, labels, *args, dtype="float32", **kwargs):
    queries, template = np.asarray(queries, dtype), np.asarray(template, dtype)
    return ops.convert_to_numpy(kr.ops.wnll(queries, template, labels, *args, **kwargs))


def gradients(function, *arrays):
    """Returns the gradients of a scalar function with respect to each of its arguments."""
    found = []
    for index in range(len(arrays)):

        def separate(x, index=index):
            return function(*(x if i == index else a for i, a in enumerate(arrays)))

        found.append(backend.input_gradient(separate, ops.convert_to_tensor(arrays[index])))
    return [ops.convert_to_numpy(gradient) for gradient in found]


@pytest.mark.slow_on_jax
@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["gaussians", "moons"])
def test_golden_values(name, dtype):
    golden = np.load(GOLDEN / f"wnll_{name}.npz")
    tolerance = {"float32": 1e-4, "float64": 1e-9}[dtype]
    x, query, template = golden["x"].astype(dtype), golden["query"], golden["template"]
    m, n = int(golden["num_neighbors"]), int(golden["sigma_neighbor"])
    labels = golden["y"][template]
    for kernel in ("gaussian", "quartic"):
        u = interpolated(x[query], x[template], labels, m, n, kernel, dtype=dtype)
        np.testing.assert_allclose(u, golden[f"u_{kernel}"], rtol=0, atol=tolerance)

    one_hot = np.eye(golden["u_gaussian"].shape[1], dtype=dtype)[labels]
    cotangent = golden["cotangent"].astype(dtype)

    def product(queries, template, values):
        return ops.sum(kr.ops.wnll(queries, template, values, m, n) * cotangent)

    found = gradients(product, x[query], x[template], one_hot)
    expected = golden["grad_x"][query], golden["grad_x"][template], golden["grad_g"]
    for gradient, golden_gradient in zip(found, expected, strict=True):
        np.testing.assert_allclose(gradient, golden_gradient, rtol=0, atol=tolerance)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("joint", [True, False])
@pytest.mark.parametrize("kernel", ["gaussian", "quartic"])
@pytest.mark.parametrize("gamma", [None, 0.0, 2.0])
def test_agrees_with_the_reference(joint, kernel, gamma, dtype):
    queries, template, labels = points()
    settings = {"kernel": kernel, "joint": joint}
    u = interpolated(
        queries, template, labels, 8, 4, template_weight=gamma, dtype=dtype, **settings
    )
    expected = reference(queries, template, np.eye(3)[labels], 8, 4, gamma=gamma, **settings)
    tolerance = {"float32": 2e-4, "float64": 1e-9}[dtype]
    np.testing.assert_allclose(u, expected, rtol=0, atol=tolerance)


@pytest.mark.skipif(len(DTYPES) == 1, reason="finite differences need float64")
@pytest.mark.parametrize("joint", [True, False])
def test_gradient_agrees_with_finite_differences(joint):
    queries, template, labels = points(12, 18)
    values = np.eye(3)[labels]
    rng = np.random.default_rng(1)
    cotangent = rng.normal(size=(12, 3))

    def product(queries, template, values):
        return ops.sum(kr.ops.wnll(queries, template, values, 6, 3, joint=joint) * cotangent)

    arrays = [queries, template, values]
    for index, gradient in enumerate(gradients(product, *arrays)):
        direction = rng.normal(size=arrays[index].shape)
        step = 1e-6
        ends = []
        for sign in (1, -1):
            moved = list(arrays)
            moved[index] = arrays[index] + sign * step * direction
            ends.append(float(product(*moved)))
        slope = (ends[0] - ends[1]) / (2 * step)
        assert slope == pytest.approx(np.sum(gradient * direction), rel=1e-5, abs=1e-7)


@pytest.mark.slow_on_jax
@pytest.mark.parametrize("joint", [True, False])
def test_second_derivative_agrees_with_finite_differences(joint):
    """Losses that include a gradient need the second derivative."""
    dtype = DTYPES[-1]
    queries, template, labels = points(8, 12)
    queries, template = np.asarray(queries, dtype), np.asarray(template, dtype)
    values = np.eye(3, dtype=dtype)[labels]
    direction = np.random.default_rng(1).normal(size=queries.shape).astype(dtype)

    def first(queries):
        return ops.sum(kr.ops.wnll(queries, template, values, 19, 3, joint=joint)[:, 0])

    def slope(queries):
        return ops.sum(ops.square(backend.input_gradient(first, queries)))

    (second,) = gradients(slope, queries)
    step = {"float32": 1e-2, "float64": 1e-5}[dtype]
    ends = [
        float(slope(ops.convert_to_tensor(queries + sign * step * direction))) for sign in (1, -1)
    ]
    expected = (ends[0] - ends[1]) / (2 * step)
    tolerance = {"float32": 2e-2, "float64": 1e-6}[dtype]
    assert np.sum(second * direction) == pytest.approx(expected, rel=tolerance)


@pytest.mark.slow_on_jax
@pytest.mark.parametrize("joint", [True, False])
def test_gradient_in_a_branch(joint):
    """A compiled WNLL head switches between phases by branches."""
    queries, template, labels = (np.asarray(a, "float32") for a in points(12, 18))
    labels = labels.astype("int32")

    def first(queries):
        u = kr.ops.wnll(queries, template, labels, 6, 3, joint=joint, num_classes=3)
        return ops.sum(u[:, 0])

    def branch(queries):
        return ops.switch(ops.array(1), [lambda: ops.sum(queries), lambda: first(queries)])

    (expected,), (found,) = gradients(first, queries), gradients(branch, queries)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert abs(expected).max() > 1e-2


@pytest.mark.gpu
def test_gradient_is_orthogonal_to_translation_and_scaling():
    queries, template, labels = (np.asarray(a, "float32") for a in points())
    labels = labels.astype("int32")

    def first(queries, template):
        return ops.sum(kr.ops.wnll(queries, template, labels, 8, 4, num_classes=3)[:, 0])

    found = gradients(first, queries, template)
    size = sum(np.abs(gradient).sum() for gradient in found)
    total = sum(gradient.sum(axis=0) for gradient in found)
    inner = np.sum(queries * found[0]) + np.sum(template * found[1])
    assert size > 0.1
    np.testing.assert_allclose(total, 0, atol=1e-4 * size)
    assert abs(inner) < 1e-3 * size


@pytest.mark.gpu
@pytest.mark.slow_on_jax
def test_maximum_principle():
    for seed in range(5):
        queries, template, labels = points(100, 30, seed=seed)
        u = interpolated(queries, template, labels, 10, 5)
        assert u.min() >= 0
        np.testing.assert_allclose(u.sum(axis=1), 1, atol=1e-5)


@pytest.mark.gpu
def test_invariances():
    queries, template, labels = points()
    u = interpolated(queries, template, labels, 8, 4)
    shift = np.full(5, 20.0)
    moved = interpolated(queries + shift, template + shift, labels, 8, 4)
    scaled = interpolated(1000 * queries, 1000 * template, labels, 8, 4)
    order = np.random.default_rng(0).permutation(len(queries))
    permuted = interpolated(queries[order], template, labels, 8, 4)
    np.testing.assert_allclose(moved, u, atol=1e-3)
    np.testing.assert_allclose(scaled, u, atol=1e-4)
    np.testing.assert_allclose(permuted, u[order], atol=1e-4)


@pytest.mark.gpu
def test_one_query_between_two_points():
    """u(x) is the share of each point's weight, w(x, y) + (1 + gamma) w(y, x)."""
    template = np.array([[0.0], [3.0]])
    u = interpolated([[1.0]], template, [0, 1], 2, 2, template_weight=0.5)
    weights = [np.exp(-1 / 4) + 1.5 * np.exp(-1 / 9), np.exp(-4 / 4) + 1.5 * np.exp(-4 / 9)]
    np.testing.assert_allclose(u[0], np.array(weights) / sum(weights), atol=1e-5)


@pytest.mark.slow_on_jax
def test_isolated_components_get_the_class_shares():
    template = np.array([[0.0, 0.0], [0.1, 0.0], [0.0, 0.1], [0.1, 0.1]])
    near, far = template[:3] + 0.05, 1e4 + np.random.default_rng(0).normal(size=(200, 2))
    u = interpolated(np.concatenate([near, far]), template, [0, 1, 1, 1], 3, 2)
    assert np.isfinite(u).all()
    np.testing.assert_allclose(u[3:], np.tile([0.25, 0.75], (200, 1)), atol=0.03)


@pytest.mark.gpu
@pytest.mark.slow_on_jax
def test_duplicates():
    template = np.repeat([[0.0, 0.0], [1.0, 0.0]], 10, axis=0)
    labels = np.repeat([0, 1], 10)
    queries = np.array([[0.0, 0.0], [1.0, 0.0], [0.4, 0.0]])
    u = interpolated(queries, template, labels, 6, 3)
    np.testing.assert_allclose(u.sum(axis=1), 1, atol=1e-5)
    assert u.argmax(axis=1).tolist() == [0, 1, 0]
    all_the_same = interpolated(np.zeros((3, 2)), np.zeros((4, 2)), [0, 0, 0, 1])
    np.testing.assert_allclose(all_the_same, np.tile([0.75, 0.25], (3, 1)), atol=1e-5)

    def first(queries):
        return ops.sum(kr.ops.wnll(queries, template.astype("float32"), labels, 6, 3)[:, 0])

    assert np.isfinite(gradients(first, queries.astype("float32"))[0]).all()


@pytest.mark.slow_on_jax
@pytest.mark.parametrize("joint", [True, False])
def test_fewer_points_than_neighbours(joint):
    queries, template, labels = points(3, 4)
    u = interpolated(queries, template, labels, 30, 15, joint=joint)
    expected = reference(queries, template, np.eye(3)[labels], 30, 15, joint=joint)
    np.testing.assert_allclose(u, expected, atol=1e-4)


def test_a_class_without_template_points_gets_0():
    queries, template, labels = points()
    u = interpolated(queries, template, np.where(labels == 2, 1, labels), 8, 4, num_classes=4)
    assert u.shape == (40, 4)
    np.testing.assert_array_equal(u[:, 2:], 0)


@pytest.mark.gpu
@pytest.mark.slow_on_jax
def test_without_joint_results_equal_batches_of_one():
    queries, template, labels = points()
    together = interpolated(queries, template, labels, 8, 4, joint=False)
    separate = [interpolated(query[None], template, labels, 8, 4)[0] for query in queries]
    np.testing.assert_allclose(together, separate, atol=1e-4)
    half = interpolated(queries[:20], template, labels, 8, 4, joint=False)
    np.testing.assert_allclose(together[:20], half, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.slow_on_jax
@pytest.mark.parametrize("dtype", DTYPES)
def test_conjugate_gradients_agree_with_cholesky(dtype, monkeypatch):
    queries, template, labels = points(200, 50)
    dense = interpolated(queries, template, labels, 10, 5, dtype=dtype)
    monkeypatch.setattr(interpolation, "MAX_DENSE", 100)
    iterative = interpolated(queries, template, labels, 10, 5, dtype=dtype)
    assert not np.array_equal(dense, iterative)
    tolerance = {"float32": 1e-4, "float64": 1e-9}[dtype]
    np.testing.assert_allclose(iterative, dense, atol=tolerance)


def test_in_a_compiled_function_with_any_batch_size():
    queries, template, labels = (np.asarray(a, "float32") for a in points())
    labels = labels.astype("int32")

    class Model(keras.Model):
        def call(self, x):
            return kr.ops.wnll(x, template, labels, 8, 4, num_classes=3)

    model = Model()
    predicted = model.predict(queries, batch_size=40, verbose=0)
    np.testing.assert_allclose(predicted, interpolated(queries, template, labels, 8, 4), atol=1e-5)
    assert model.predict(queries, batch_size=7, verbose=0).shape == (40, 3)


@pytest.mark.slow_on_jax
@pytest.mark.parametrize("joint", [True, False])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e30])
def test_a_query_that_is_not_finite_does_not_affect_the_others(joint, value):
    """It gets NaN and does not affect the others. The square of 1e30 overflows."""
    queries, template, labels = points()
    broken = queries.copy()
    broken[[3, 17], 2] = value
    rest = np.delete(np.arange(len(queries)), [3, 17])
    u = interpolated(broken, template, labels, 8, 4, joint=joint)
    assert np.isnan(u[[3, 17]]).all()
    expected = interpolated(queries[rest], template, labels, 8, 4, joint=joint)
    np.testing.assert_allclose(u[rest], expected, atol=1e-5)
    separate = interpolated(broken[[3]], template, labels, 8, 4, joint=joint)
    assert np.isnan(separate).all()


@pytest.mark.slow_on_jax
@pytest.mark.parametrize("joint", [True, False])
def test_a_query_that_is_not_finite_does_not_affect_gradients(joint):
    rng = np.random.default_rng(0)
    queries, template = (rng.normal(size=(n, 5)).astype("float32") for n in (12, 18))
    labels, rest = np.arange(18, dtype="int32") % 3, np.delete(np.arange(12), 4)
    broken = queries.copy()
    broken[4, 0] = np.nan

    def first(queries, rows):
        u = kr.ops.wnll(queries, template, labels, 6, 3, joint=joint, num_classes=3)
        return ops.sum(ops.take(u[:, 0], rows))

    (found,) = gradients(lambda x: first(x, rest), broken)
    (expected,) = gradients(lambda x: first(x, np.arange(11)), queries[rest])
    np.testing.assert_allclose(found[rest], expected, atol=1e-4)
    assert abs(expected).max() > 1e-2


@pytest.mark.slow_on_jax
def test_a_template_that_is_not_finite_is_an_error_or_gives_nan():
    queries, template, labels = (np.asarray(a, "float32") for a in points())
    labels = labels.astype("int32")
    for value in (np.nan, np.inf, 1e30):
        template[7, 1] = value
        with pytest.raises(ValueError, match=r"`template` must hold finite numbers.* 1 rows"):
            kr.ops.wnll(queries, template, labels, 8, 4)

        class Model(keras.Model):
            """A model whose template is a traced weight, so its values are unknown in tracing."""

            def build(self, input_shape):
                self.template = self.add_weight(shape=template.shape)

            def call(self, x):
                return kr.ops.wnll(x, self.template, labels, 8, 4, num_classes=3)

        model = Model()
        model.build(queries.shape)
        model.set_weights([template])
        assert np.isnan(model.predict(queries, verbose=0)).all()
    vectors = np.eye(3)[labels]
    vectors[5, 1] = np.nan
    with pytest.raises(ValueError, match="`labels` must hold finite numbers"):
        kr.ops.wnll(queries, points()[1].astype("float32"), vectors, 8, 4)


@pytest.mark.parametrize(
    ("num_neighbors", "expected"), [(30, 15), (15, 8), (14, 7), (10, 5), (2, 1), (1, 1)]
)
def test_sigma_neighbor_is_half_of_num_neighbors(num_neighbors, expected):
    """Rounded up, in agreement with the paper (15 and 8) and its code (14 and 7)."""
    queries, template, labels = points()
    u = interpolated(queries, template, labels, num_neighbors)
    np.testing.assert_array_equal(
        u, interpolated(queries, template, labels, num_neighbors, expected)
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_neighbors": 0}, "num_neighbors"),
        ({"sigma_neighbor": 9}, "`sigma_neighbor` must be at most `num_neighbors`"),
        ({"kernel": "cubic"}, "kernel"),
        ({"template_weight": -1.0}, "template_weight"),
        ({"num_classes": 2}, "labels"),
        ({"labels": np.array([-1] + [0] * 59)}, "labels"),
        ({"labels": np.zeros(59, int)}, "one label for each"),
        ({"template": np.zeros((60, 4))}, "shape"),
        ({"template": np.zeros((0, 5)), "labels": np.zeros(0, int)}, "at least one"),
    ],
)
def test_bad_input(change, message):
    queries, template, labels = points()
    arguments = {"template": template, "labels": labels, "num_neighbors": 8, "sigma_neighbor": 4}
    with pytest.raises(ValueError, match=message):
        kr.ops.wnll(queries, **{**arguments, **change})
