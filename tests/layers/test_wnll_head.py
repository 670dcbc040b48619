"""The WNLL head agrees with a dense layer, and with `kr.ops.wnll` on features from NumPy."""

import copy
import pathlib
import runpy

import keras
import numpy as np
import pytest
from keras import ops

import keras_robust as kr
from keras_robust import backend
from keras_robust.layers import wnll_template
from keras_robust.model.classifier import Classifier

pytestmark = pytest.mark.slow_on_jax

REFERENCE = runpy.run_path(str(pathlib.Path(__file__).parents[1] / "ops" / "reference_wnll.py"))
SETTINGS = {"num_neighbors": 8, "sigma_neighbor": 4}
needs_float64 = pytest.mark.skipif(
    keras.backend.backend() == "jax", reason="JAX has float64 only if it was enabled first"
)


def clusters(count, seed=0, dimensions=5, num_classes=3, spread=1.0):
    rng = np.random.default_rng(seed)
    centers = 2 * np.random.default_rng(9).normal(size=(num_classes, dimensions))
    y = np.arange(count) % num_classes
    x = centers[y] + spread * rng.normal(size=(count, dimensions))
    return x.astype("float32"), y.astype("int32")


def make_model(adapt=True, template_size=30, units=16, seed=1, **arguments):
    """Returns a model that consists of a head, and the head."""
    keras.utils.set_random_seed(seed)
    head = kr.layers.WNLLHead(
        3, units=units, template_size=template_size, **{**SETTINGS, **arguments}
    )
    model = keras.Sequential([keras.Input((5,)), head])
    if adapt:
        head.adapt(*clusters(template_size))
    return model, head


def array(x):
    return ops.convert_to_numpy(x)


def softmax(z):
    z = np.exp(z - z.max(axis=1, keepdims=True))
    return z / z.sum(axis=1, keepdims=True)


def after_buffer_block(head, x):
    if head.buffer is None:
        return x
    kernel, bias = head.buffer.get_weights()
    return np.maximum(x @ kernel + bias, 0)


def linear_branch(head, x):
    kernel, bias = head.linear.get_weights()
    return after_buffer_block(head, x) @ kernel + bias


def expected_u(head, x, rows=slice(None), others=None, **arguments):
    """Computes u by `kr.ops.wnll` on the template's `rows`, with `others` as further queries."""
    queries = x if others is None else np.concatenate([x, others])
    template = after_buffer_block(head, array(head.template.features)[rows])
    labels = array(head.template.labels)[rows]
    settings = {**SETTINGS, "joint": head.joint, "num_classes": 3, **arguments}
    return array(kr.ops.wnll(after_buffer_block(head, queries), template, labels, **settings))[
        : len(x)
    ]


def gradient_of(function, x):
    return array(backend.input_gradient(function, ops.convert_to_tensor(x)))


def test_the_linear_phase_is_a_dense_layer():
    x, _ = clusters(20)
    for units in (16, None):
        model, head = make_model(adapt=False, units=units)
        assert head.phase == "linear"
        np.testing.assert_allclose(array(model(x)), linear_branch(head, x), rtol=1e-4, atol=1e-5)
        head.adapt(*clusters(30))
        head.phase = "linear"
        np.testing.assert_allclose(array(model(x)), linear_branch(head, x), rtol=1e-4, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.usefixtures("networks_in_float32")
@pytest.mark.parametrize(
    "arguments",
    [{}, {"units": None}, {"joint": False}, {"kernel": "quartic"}, {"template_weight": 2.0}],
    ids=str,
)
def test_the_wnll_phase_agrees_with_kr_ops_wnll(arguments):
    model, head = make_model(**arguments)
    x, _ = clusters(20, seed=1)
    assert head.phase == "wnll"
    options = {name: value for name, value in arguments.items() if name != "units"}
    u = expected_u(head, x, **options)
    np.testing.assert_allclose(softmax(array(model(x))), u, atol=1e-4)
    np.testing.assert_allclose(model.predict(x, verbose=0), array(model(x)), atol=1e-3)
    assert model.count_params() == sum(w.size for w in model.get_weights())


@pytest.mark.parametrize("gradient", ["exact", "straight_through", "linear"])
def test_the_output_is_log_u_for_every_gradient(gradient):
    model, head = make_model(gradient=gradient)
    # If such a large linear branch were added and subtracted, rounding would erase log u.
    head.linear.set_weights([1e5 * w for w in head.linear.get_weights()])
    x, _ = clusters(20, seed=1)
    u = np.maximum(expected_u(head, x), 0) + 1e-6
    np.testing.assert_allclose(array(model(x)), np.log(u / u.sum(1, keepdims=True)), atol=2e-2)
    np.testing.assert_allclose(softmax(array(model(x))), u, atol=1e-4)


def test_phase_and_joint_switch_in_compiled_functions_of_keras():
    model, head = make_model()
    x, _ = clusters(12, seed=1)
    joint = model.predict(x, verbose=0)
    head.joint = False
    alone = model.predict(x, verbose=0)
    head.phase = "linear"
    linear = model.predict(x, verbose=0)
    np.testing.assert_allclose(softmax(alone), expected_u(head, x, joint=False), atol=1e-4)
    np.testing.assert_allclose(linear, linear_branch(head, x), rtol=1e-4, atol=1e-5)
    assert not np.allclose(joint, alone, atol=1e-3)
    head.phase, head.joint = "wnll", True
    np.testing.assert_array_equal(model.predict(x, verbose=0), joint)


def test_phase_and_joint_switch_in_compiled_functions_of_the_library():
    """Our functions are compiled for one branch, so a switch must compile another one."""
    inner, head = make_model()
    model = kr.RobustModel(keras.Sequential([keras.Input((5,)), inner]))
    x, _ = clusters(12, seed=1)
    outputs_by_case = []
    for phase, joint in [("wnll", True), ("wnll", False), ("linear", True), ("wnll", True)]:
        head.phase, head.joint = phase, joint
        outputs_by_case.append(Classifier.of(model).predict(x))
        np.testing.assert_allclose(outputs_by_case[-1], array(model(x)), rtol=1e-4, atol=1e-3)
    np.testing.assert_array_equal(outputs_by_case[3], outputs_by_case[0])
    assert all(abs(outputs_by_case[0] - other).max() > 1e-2 for other in outputs_by_case[1:3])


@pytest.mark.skipif(keras.backend.backend() != "jax", reason="TensorFlow compiles no eager call")
@pytest.mark.parametrize("units", [None, 3])
@pytest.mark.parametrize("joint", [True, False])
def test_a_second_call_from_python_compiles_nothing(joint, units):
    import jax

    compilations = []

    def listener(event, duration, **_):
        if "backend_compile" in event:
            compilations.append(event)

    model, _ = make_model(joint=joint, units=units)
    x, _ = clusters(3, seed=1)
    # The listener stays registered, because JAX 0.7 cannot remove it.
    jax.monitoring.register_event_duration_secs_listener(listener)
    first = array(model(x))
    compilations.clear()
    np.testing.assert_array_equal(array(model(x)), first)
    assert not compilations
    jax.jit(lambda value: value + 1)(1)
    assert compilations, "the listener does not work"


@pytest.mark.gpu
def test_without_joint_predictions_do_not_depend_on_the_batch():
    model, head = make_model()
    x, _ = clusters(24, seed=1)
    assert head.depends_on_batch
    assert Classifier(model).depends_on_batch
    assert Classifier(kr.RobustModel(keras.Sequential([model]))).depends_on_batch
    together = model.predict(x, verbose=0)
    assert abs(together[:5] - model.predict(x[:5], verbose=0)).max() > 1e-3
    head.joint = False
    assert not Classifier(model).depends_on_batch
    together = softmax(model.predict(x, verbose=0))
    for size in (1, 5):
        parts = softmax(model.predict(x, batch_size=size, verbose=0))
        np.testing.assert_allclose(parts, together, atol=1e-5)
    head.joint, head.phase = True, "linear"
    assert not Classifier(model).depends_on_batch


def test_the_wnll_phase_needs_a_template():
    for model in (make_model(adapt=False)[0], None):
        head = kr.layers.WNLLHead(3) if model is None else model.layers[-1]
        with pytest.raises(ValueError, match="template is empty"):
            head.phase = "wnll"
        head.phase = "linear"
        assert head.phase == "linear"
    with pytest.raises(ValueError, match="phase"):
        head.phase = "softmax"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features": clusters(29)[0], "labels": clusters(29)[1]}, "`template_size`, 30"),
        ({"labels": np.repeat([0, 1], 20)}, r"without the classes \[2\]"),
        ({"labels": np.repeat([0, 1, 2, 3], 10)}, "integers below 3"),
        ({"labels": np.repeat([-2, 0, 1, 2], 10)}, "-1 for unlabeled"),
        ({"labels": np.zeros(40)}, "dtype float64"),
        ({"labels": np.zeros(39, int)}, "shapes"),
        ({"labels": np.zeros((40, 2), int)}, "shapes"),
        ({"features": np.zeros((40, 2, 5))}, "shapes"),
        ({"features": np.zeros((40, 6))}, "shapes .*5"),
        ({"features": np.zeros((0, 5)), "labels": np.zeros(0, int)}, "at least one"),
        ({"features": np.full((40, 5), np.nan)}, "finite"),
        ({"features": np.full((40, 5), 1e30)}, "`features` must hold finite.* 40 rows"),
        ({"labels": np.full((40, 3), np.nan)}, "one-hot vectors with NaN"),
    ],
)
def test_bad_templates(change, message):
    _, head = make_model(adapt=False)
    features, labels = clusters(40)
    with pytest.raises(ValueError, match=message):
        head.adapt(**{"features": features, "labels": labels, **change})
    assert not head.is_adapted
    assert head.phase == "linear"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_classes": 0}, "num_classes"),
        ({"units": 0}, "units"),
        ({"sigma_neighbor": 31}, "sigma_neighbor"),
        ({"kernel": "cubic"}, "kernel"),
        ({"template_weight": -1}, "template_weight"),
        ({"gradient": "none"}, "gradient"),
        ({"neighbors": "faiss"}, "neighbors"),
        ({"vote": "median"}, "vote"),
        ({"template_size": 0}, "template_size"),
        ({"template_size": 2}, "template_batches"),
        ({"template_batches": 3}, "template_batches"),
        ({"template_size": 10, "template_batches": 5}, "template_batches"),
        ({"unlabeled_size": -1}, "unlabeled_size"),
        ({"unlabeled_size": 2.5}, "unlabeled_size"),
        ({"unlabeled_size": 5, "joint": False}, "`joint` must be True"),
    ],
)
def test_bad_arguments(change, message):
    with pytest.raises(ValueError, match=message):
        kr.layers.WNLLHead(**{"num_classes": 3, **change})


def test_the_template_is_drawn_from_the_given_features():
    features, labels = clusters(200)
    labels[labels == 2] = 1
    labels[77] = 2
    _, head = make_model(adapt=False)
    drawn = []
    for seed in (0, 0, 1):
        head.adapt(features, labels, seed)
        drawn.append(array(head.template.features))
        rows = [int(np.flatnonzero((features == point).all(1))[0]) for point in drawn[-1]]
        assert len(set(rows)) == 30
        assert 77 in rows
        np.testing.assert_array_equal(array(head.template.labels), labels[rows])
    np.testing.assert_array_equal(drawn[0], drawn[1])
    assert (drawn[0] != drawn[2]).any()


def test_all_forms_of_labels_give_the_same_template():
    features, labels = clusters(60)
    labels[::7] = -1
    one_hot = np.where(labels[:, None] < 0, 0, np.eye(3)[labels])
    _, head = make_model(adapt=False)
    found = []
    for form in (labels, labels[:, None], one_hot, labels.astype("int64"), ops.array(labels)):
        head.adapt(features, form)
        found.append(array(head.template.features))
    for other in found[1:]:
        np.testing.assert_array_equal(other, found[0])


def test_an_unbuilt_head_can_be_filled():
    features, labels = clusters(30)
    head = kr.layers.WNLLHead(3, units=16, template_size=30, **SETTINGS)
    head.adapt(features, labels)
    assert head.phase == "wnll"
    assert array(head(features)).shape == (30, 3)


def test_unlabeled_points_are_additional_queries():
    model, head = make_model(adapt=False, unlabeled_size=25)
    features, labels = clusters(80)
    labels[:40] = -1
    head.adapt(features, labels)
    others = array(head.template.unlabeled)
    assert (others[:, None] == features[None, :40]).all(axis=2).any(axis=1).all()
    x, _ = clusters(10, seed=1)
    np.testing.assert_allclose(
        softmax(array(model(x))), expected_u(head, x, others=others), atol=1e-4
    )
    with pytest.raises(ValueError, match="`joint` must be True"):
        head.joint = False
    with pytest.raises(ValueError, match="`unlabeled_size`, 25"):
        head.adapt(features[20:], labels[20:])


def test_template_batches_vote():
    x, _ = clusters(40, seed=1, spread=2.0)
    outputs_by_case = {}
    for vote in ("sum", "majority"):
        model, head = make_model(template_batches=3, template_size=36, vote=vote)
        parts = [expected_u(head, x, slice(12 * n, 12 * n + 12)) for n in range(3)]
        # Each batch has its share of every class.
        for number in range(3):
            labels = array(head.template.labels)[12 * number : 12 * number + 12]
            np.testing.assert_array_equal(np.bincount(labels), [4, 4, 4])
        if vote == "sum":
            expected = np.mean(parts, axis=0)
        else:
            expected = np.mean([np.eye(3)[part.argmax(axis=1)] for part in parts], axis=0)
        outputs_by_case[vote] = softmax(array(model(x)))
        np.testing.assert_allclose(outputs_by_case[vote], expected, atol=1e-4)
    assert not np.allclose(outputs_by_case["sum"], outputs_by_case["majority"], atol=0.05)


def test_a_vote_by_majority_has_the_gradient_of_the_mean():
    x, _ = clusters(10, seed=1, spread=2.0)
    gradients = []
    for vote in ("sum", "majority"):
        _, head = make_model(template_batches=3, template_size=36, vote=vote)
        u = head._interpolate
        features = after_buffer_block(head, x)
        gradients.append(gradient_of(lambda h, u=u: ops.sum(u(h, True)[:, 0]), features))
    np.testing.assert_allclose(*gradients, atol=1e-5)
    assert abs(gradients[0]).max() > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("size", ["small", "large"])
@pytest.mark.parametrize("joint", [True, False])
def test_a_row_that_is_not_finite_does_not_affect_the_others(size, joint, monkeypatch):
    """Its output is NaN, and the other outputs do not depend on it."""
    if size == "large":
        monkeypatch.setattr(wnll_template, "_MAX_UNION", 10)
    for arguments in ({"units": None}, {"vote": "majority", "template_batches": 3}):
        model, head = make_model(joint=joint, **arguments)
        x, _ = clusters(20, seed=1)
        rest = np.delete(np.arange(20), [2, 11])
        expected = softmax(array(model(x[rest])))
        for value in (np.nan, np.inf, 1e30):
            broken = x.copy()
            broken[[2, 11], 3] = value
            outputs = model.predict(broken, verbose=0)
            assert np.isnan(outputs[[2, 11]]).all()
            np.testing.assert_allclose(softmax(outputs[rest]), expected, atol=1e-4)
            for surrogate in ("soft_neighbors", "straight_through"):
                with head.attacked_as(surrogate):
                    assert np.isnan(array(model(broken))[[2, 11]]).all()


@pytest.mark.gpu
def test_a_network_that_has_diverged_predicts_nan():
    model, head = make_model()
    x, _ = clusters(6, seed=1)
    kernel, bias = head.buffer.get_weights()
    kernel[0, 0] = np.nan
    head.buffer.set_weights([kernel, bias])
    assert np.isnan(model.predict(x, verbose=0)).all()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({}, (30, 15)),
        ({"num_neighbors": 10}, (10, 5)),
        ({"num_neighbors": 15}, (15, 8)),
        ({"num_neighbors": 1}, (1, 1)),
        ({"num_neighbors": 10, "sigma_neighbor": 9}, (10, 9)),
    ],
    ids=str,
)
def test_sigma_neighbor_is_half_of_num_neighbors(arguments, expected):
    head = kr.layers.WNLLHead(3, **arguments)
    assert (head.num_neighbors, head.sigma_neighbor) == expected
    again = kr.layers.WNLLHead.from_config(head.get_config())
    assert (again.num_neighbors, again.sigma_neighbor) == expected


class TestSmallTemplate:
    """Neighbour lists of a small template are kept, and the head is exact."""

    def test_a_call_does_not_search_the_lists_of_the_template_again(self, monkeypatch):
        searches = []
        original = wnll_template.nearest

        def recorded(queries, points, *args):
            searches.append(len(queries) == len(points))
            return original(queries, points, *args)

        monkeypatch.setattr(wnll_template, "nearest", recorded)
        model, _ = make_model(units=None)
        assert searches == [True]
        model(clusters(5, seed=1)[0])
        assert searches == [True]

    @pytest.mark.slow
    @pytest.mark.parametrize("joint", [True, False])
    def test_lists_follow_the_weights_of_the_buffer_block(self, joint):
        """After any change of the block's weights, without a call of `adapt`."""
        model, head = make_model(joint=joint)
        x, y = clusters(20, seed=1)
        before = model.predict(x, verbose=0)
        kernel, bias = head.buffer.get_weights()
        head.buffer.set_weights([-kernel, bias + 0.1])
        after = softmax(model.predict(x, verbose=0))
        assert abs(after - softmax(before)).max() > 0.05
        np.testing.assert_allclose(after, expected_u(head, x), atol=1e-4)
        head.buffer.set_weights([kernel, bias])
        np.testing.assert_array_equal(model.predict(x, verbose=0), before)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.SGD(0.5), loss)
        model.fit(x, y, epochs=2, verbose=0)
        trained = softmax(model.predict(x, verbose=0))
        np.testing.assert_allclose(trained, expected_u(head, x), atol=1e-4)

    @needs_float64
    @pytest.mark.parametrize("joint", [True, False])
    @pytest.mark.parametrize("is_current", [True, False])
    def test_the_gradient_of_the_buffer_block_agrees_with_finite_differences(
        self, joint, is_current
    ):
        """The template passes through the block, so its lists and sigma change, too."""
        _, head = make_model(dtype="float64", joint=joint)
        x = clusters(12, seed=1)[0].astype("float64")
        rng = np.random.default_rng(2)
        cotangent = rng.normal(size=(12, 3))
        kernel, bias = head.buffer.get_weights()
        if not is_current:
            kernel = kernel + 0.1 * rng.normal(size=kernel.shape)
            head.buffer.set_weights([kernel, bias])

        def product(kernel):
            with keras.StatelessScope([(head.buffer._kernel, kernel)]):
                return ops.sum(head(x) * cotangent)

        gradient = gradient_of(product, kernel)
        for _ in range(3):
            direction = rng.normal(size=kernel.shape)
            ends = []
            for sign in (1, -1):
                head.buffer.set_weights([kernel + sign * 1e-6 * direction, bias])
                ends.append(float(ops.sum(head(x) * cotangent)))
            slope = (ends[0] - ends[1]) / 2e-6
            assert abs(slope) > 1e-3
            assert np.sum(gradient * direction) == pytest.approx(slope, rel=1e-4, abs=1e-6)

    @pytest.mark.slow
    @pytest.mark.parametrize("units", [None, 16])
    def test_files_without_lists_can_be_loaded(self, units, tmp_path, monkeypatch):
        """They do not have the lists' weights, and give the same predictions."""
        model, head = make_model(units=units)
        x, _ = clusters(20, seed=1)
        expected = model.predict(x, verbose=0)
        template = head.template
        old = [template.features, template.labels]

        def save_own_variables(store):
            for number, variable in enumerate(old):
                store[str(number)] = array(variable)

        monkeypatch.setattr(template, "save_own_variables", save_own_variables)
        path = tmp_path / "old.weights.h5"
        model.save_weights(path)
        for is_filled in (False, True):
            again, _ = make_model(adapt=is_filled, units=units, seed=2)
            if is_filled:  # Replaces the lists.
                again.layers[-1].adapt(*clusters(30, seed=5))
            again.load_weights(path)
            found = again.predict(x, verbose=0)
            np.testing.assert_allclose(softmax(found), softmax(expected), atol=1e-5)

    def test_all_weights_are_finite(self):
        """Also with fewer points than neighbours."""
        model, _ = make_model(template_size=6, num_neighbors=30)
        assert all(np.isfinite(weight).all() for weight in model.get_weights())


class TestLargeTemplate:
    """For neighbour lists of a large template, only their radii are kept."""

    @pytest.fixture(autouse=True)
    def _treat_templates_as_large(self, monkeypatch):
        monkeypatch.setattr(wnll_template, "_MAX_UNION", 10)

    @pytest.mark.gpu
    @pytest.mark.usefixtures("networks_in_float32")
    @pytest.mark.parametrize("arguments", [{}, {"kernel": "quartic"}, {"template_weight": 0.5}])
    def test_without_joint_the_head_is_exact(self, arguments):
        model, head = make_model(joint=False, **arguments)
        assert head.template.keeps_radii_only
        x, _ = clusters(40, seed=1)
        u = softmax(array(model(x)))
        np.testing.assert_allclose(u, expected_u(head, x, **arguments), atol=1e-4)
        head.adapt(*clusters(30, seed=5))
        u = softmax(array(model(x)))
        np.testing.assert_allclose(u, expected_u(head, x, **arguments), atol=1e-4)

    @pytest.mark.gpu
    def test_with_joint_the_head_is_approximate(self):
        """With a tenth as many queries as template points."""
        model, head = make_model(template_size=300)
        x, _ = clusters(30, seed=1)
        u, expected = softmax(array(model(x))), expected_u(head, x)
        assert abs(u - expected).mean() < 0.01
        assert (u.argmax(1) == expected.argmax(1)).mean() >= 0.95

    def test_with_batches_and_after_loading(self, tmp_path):
        model, head = make_model(joint=False, template_batches=2, template_size=60)
        x, _ = clusters(20, seed=1)
        parts = [expected_u(head, x, slice(30 * n, 30 * n + 30)) for n in range(2)]
        u = softmax(array(model(x)))
        np.testing.assert_allclose(u, np.mean(parts, axis=0), atol=1e-4)
        model.save(tmp_path / "model.keras")
        again = keras.models.load_model(tmp_path / "model.keras")
        np.testing.assert_array_equal(array(again(x)), array(model(x)))

    def test_known_distances_give_the_same_template(self):
        features, labels = clusters(30)
        model, head = make_model(joint=False, units=None)
        x, _ = clusters(20, seed=1)
        expected = array(model(x))
        squared = ((features[:, None].astype("float64") - features) ** 2).sum(axis=2)
        np.fill_diagonal(squared, np.inf)
        distances = np.sort(squared, axis=1)[:, :8].astype("float32")
        head.adapt(features[::-1], labels[::-1], distances=distances[::-1])
        np.testing.assert_allclose(array(model(x)), expected, rtol=1e-4, atol=1e-4)
        radii = array(head.template.radii)
        head.adapt(features[::-1], labels[::-1], distances=4 * distances[::-1])
        np.testing.assert_allclose(array(head.template.radii), 4 * radii, rtol=1e-5)

        expected = array(model(x))
        with pytest.raises(ValueError, match=r"`distances` .* \(30, 8\).*shape \(30, 7\)"):
            head.adapt(features, labels, distances=distances[:, :7])
        more = clusters(31)
        with pytest.raises(ValueError, match=r"exactly 30 points.*31 points"):
            head.adapt(*more, distances=distances)
        with pytest.raises(ValueError, match=r"`distances` must be None.*units=16"):
            make_model(joint=False)[1].adapt(features, labels, distances=distances)
        np.testing.assert_allclose(array(model(x)), expected, rtol=1e-4, atol=1e-4)

    @pytest.mark.gpu
    def test_distances_beyond_half_precision(self):
        model, head = make_model(joint=False, units=None, dtype="mixed_float16")
        features, labels = clusters(30)
        head.adapt(300 * features, labels)
        assert array(head.template.radii).max() > 65504
        x, _ = clusters(20, seed=1)
        u = softmax(array(model(300 * x)))
        np.testing.assert_allclose(u, expected_u(head, 300 * x), atol=0.02)

    @needs_float64
    def test_the_gradient_agrees_with_finite_differences(self):
        _, head = make_model(joint=False, dtype="float64")
        x, _ = clusters(6, seed=1)
        assert_gradient_agrees_with_finite_differences(head, x.astype("float64"))


def assert_gradient_agrees_with_finite_differences(head, x):
    rng = np.random.default_rng(2)
    cotangent = rng.normal(size=(len(x), 3))

    def product(x):
        return ops.sum(head(x) * cotangent)

    gradient = gradient_of(product, x)
    assert gradient.dtype == np.float64
    for _ in range(3):
        direction = rng.normal(size=x.shape)
        ends = [float(product(x + sign * 1e-6 * direction)) for sign in (1, -1)]
        slope = (ends[0] - ends[1]) / 2e-6
        assert np.sum(gradient * direction) == pytest.approx(slope, rel=1e-4, abs=1e-6)


@needs_float64
@pytest.mark.parametrize(
    "arguments", [{}, {"joint": False}, {"template_batches": 2}, {"units": None}], ids=str
)
def test_the_exact_gradient_agrees_with_finite_differences(arguments):
    _, head = make_model(dtype="float64", **arguments)
    assert_gradient_agrees_with_finite_differences(head, clusters(12, seed=1)[0].astype("float64"))


@pytest.mark.gpu
@pytest.mark.usefixtures("networks_in_float32")
def test_the_straight_through_gradient():
    """Passes softmax(log u) - y to the linear branch, as in the papers' code."""
    model, head = make_model(gradient="straight_through")
    x, y = clusters(15, seed=1)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction="sum")
    found = gradient_of(lambda x: loss(y, model(x)), x)
    u = softmax(array(model(x)))
    back = (u - np.eye(3)[y]) @ head.linear.get_weights()[0].T * (after_buffer_block(head, x) > 0)
    np.testing.assert_allclose(found, back @ head.buffer.get_weights()[0].T, atol=1e-3)


@pytest.mark.gpu
@pytest.mark.usefixtures("networks_in_float32")
def test_the_linear_gradient():
    """Attacks and training differentiate the linear branch, and predictions are those of u."""
    model, head = make_model(gradient="linear")
    x, _ = clusters(15, seed=1)
    z = linear_branch(head, x)
    np.testing.assert_allclose(array(model(x, training=True)), z, rtol=1e-4, atol=1e-5)
    with head.attacked_as() as is_other:
        assert is_other
        np.testing.assert_allclose(array(model(x)), z, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(softmax(array(model(x))), expected_u(head, x), atol=1e-4)


@pytest.mark.parametrize("gradient", ["exact", "straight_through"])
def test_surrogates_are_undone(gradient):
    model, head = make_model(gradient=gradient)
    x, _ = clusters(10, seed=1)
    before = array(model(x))
    with head.attacked_as() as is_other:
        assert not is_other
        np.testing.assert_allclose(array(model(x)), before, atol=1e-3)
    for surrogate in ("linear", "soft_neighbors", "straight_through", "exact"):
        with head.attacked_as(surrogate) as is_other:
            assert is_other == (surrogate in ("linear", "soft_neighbors"))
            assert (not np.allclose(array(model(x)), before, atol=1e-3)) == is_other
    np.testing.assert_allclose(array(model(x)), before, atol=1e-3)
    assert head.gradient == gradient


def test_soft_neighbors():
    _, head = make_model()
    x, _ = clusters(10, seed=1)
    template, labels = (
        after_buffer_block(head, array(head.template.features)),
        array(head.template.labels),
    )
    distances = ((after_buffer_block(head, x)[:, None] - template) ** 2).sum(axis=2)
    weights = np.exp(-distances / np.sort(distances, axis=1)[:, 3:4])
    expected = np.log(np.stack([weights[:, labels == c].sum(axis=1) for c in range(3)], axis=1))
    with head.attacked_as("soft_neighbors"):
        np.testing.assert_allclose(array(head(x)), expected, rtol=1e-3, atol=1e-3)


def test_a_template_smaller_than_the_lists():
    """With the defaults of 30 and 15 for m and n, and a template of 6 points."""
    model, head = make_model(template_size=6, num_neighbors=30, sigma_neighbor=15)
    x, _ = clusters(4, seed=1)
    u = softmax(array(model(x)))
    expected = expected_u(head, x, num_neighbors=30, sigma_neighbor=15)
    np.testing.assert_allclose(u, expected, atol=1e-4)
    with head.attacked_as("soft_neighbors"):
        assert np.isfinite(array(model(x))).all()


@pytest.mark.gpu
def test_mixed_precision():
    """The solution is in float32, and only the features are rounded."""
    model, head = make_model(dtype="mixed_float16")
    full, full_head = make_model()
    x, _ = clusters(20, seed=1)
    assert model.compute_dtype == "float16" or head.compute_dtype == "float16"
    for name in ("wnll", "linear"):
        head.phase = full_head.phase = name
        outputs = array(model(x))
        assert outputs.dtype == np.float32
        np.testing.assert_allclose(softmax(outputs), softmax(array(full(x))), atol=0.02)
    keras.config.set_dtype_policy("mixed_float16")
    inner = keras.Sequential([keras.Input((5,)), keras.layers.Dense(5), make_model(False)[1]])
    assert array(inner(x)).dtype == np.float32


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
@pytest.mark.parametrize("arguments", [{}, {"joint": False}, {"units": None}], ids=str)
def test_the_graph_of_rounded_features_is_in_float32(policy, arguments):
    policy = keras.DTypePolicy(policy)
    _, head = make_model(dtype=policy, **arguments)
    keras.config.set_dtype_policy(policy)  # Reset after each test.
    inner = keras.layers.Dense(5, kernel_initializer="identity")
    model = keras.Sequential([keras.Input((5,)), inner, head])
    x, _ = clusters(20, seed=1)

    def rounded(features):
        return array(features if head.buffer is None else head.buffer(features)).astype("float64")

    template = ops.convert_to_tensor(head.template.features)
    values = np.eye(3)[array(head.template.labels)]
    expected = REFERENCE["wnll"](
        rounded(inner(x)), rounded(template), values, 8, 4, joint=head.joint
    )
    expected = (expected + 1e-6) / (1 + 3e-6)
    np.testing.assert_allclose(softmax(array(model(x))), expected, atol=1e-5)


def test_saving_and_loading(tmp_path):
    x, _ = clusters(10, seed=1)
    for phase, joint in [("wnll", True), ("wnll", False), ("linear", False)]:
        model, head = make_model(gradient="straight_through")
        head.phase, head.joint = phase, joint
        model.save(tmp_path / "model.keras")
        again = keras.models.load_model(tmp_path / "model.keras")
        copies = [again, copy.deepcopy(model), keras.models.clone_model(model)]
        copies[2].set_weights(model.get_weights())
        for other in copies:
            copied_head = other.layers[-1]
            np.testing.assert_array_equal(array(other(x)), array(model(x)))
            assert (copied_head.phase, copied_head.joint, copied_head.gradient) == (
                phase,
                joint,
                "straight_through",
            )
            assert copied_head.is_adapted
        assert again.layers[-1].get_config() == head.get_config()


def test_a_weights_file_includes_the_phase_and_the_template(tmp_path):
    x, _ = clusters(10, seed=1)
    model, head = make_model()
    head.joint = False
    model.save_weights(tmp_path / "a.weights.h5")
    other, _ = make_model(adapt=False, seed=2)
    before = array(other(x))
    other.load_weights(tmp_path / "a.weights.h5")
    assert (other.layers[-1].phase, other.layers[-1].joint) == ("wnll", False)
    np.testing.assert_array_equal(array(other(x)), array(model(x)))
    assert not np.allclose(before, array(other(x)))


@pytest.mark.slow
@pytest.mark.parametrize("gradient", ["exact", "straight_through", "linear"])
def test_training_in_the_wnll_phase(gradient):
    model, head = make_model(gradient=gradient)
    x, y = clusters(90, seed=1, spread=2.0)
    template = array(head.template.features)
    model.compile(
        keras.optimizers.SGD(0.05), keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    )
    losses = model.fit(x, y, epochs=6, batch_size=30, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
    np.testing.assert_array_equal(array(head.template.features), template)


class ExactScann:
    """Replaces ScaNN, which may not be installable with this TensorFlow.

    Uses NumPy. On one core, TensorFlow could deadlock, because a TensorFlow function calls this.
    """

    def __init__(self, points, num_neighbors):
        self._points = points

    def search(self, queries, num_neighbors):
        distances = ((queries[:, None] - self._points) ** 2).sum(axis=2)
        indices = distances.argsort(axis=1, kind="stable")[:, :num_neighbors].astype("int32")
        return np.take_along_axis(distances, indices, axis=1), indices


@pytest.mark.skipif(keras.backend.backend() == "jax", reason="ScaNN is for TensorFlow alone")
def test_scann_is_called_by_compiled_functions(monkeypatch, tmp_path):
    monkeypatch.setattr(wnll_template, "ScannIndex", ExactScann)
    # A template of 2 m points, so that all points are candidates.
    model, head = make_model(joint=False, neighbors="scann", template_size=16)
    x, _ = clusters(20, seed=1)
    np.testing.assert_allclose(softmax(model.predict(x, verbose=0)), expected_u(head, x), atol=1e-4)
    model.save_weights(tmp_path / "a.weights.h5")
    head.adapt(*clusters(30, seed=5))
    np.testing.assert_allclose(softmax(model.predict(x, verbose=0)), expected_u(head, x), atol=1e-4)
    model.load_weights(tmp_path / "a.weights.h5")
    np.testing.assert_allclose(softmax(model.predict(x, verbose=0)), expected_u(head, x), atol=1e-4)
    copy.deepcopy(model)


def test_missing_scann_is_an_error_when_the_template_is_filled(monkeypatch):
    def missing(*args):
        raise ImportError("ScaNN could not be imported.")

    monkeypatch.setattr(wnll_template, "ScannIndex", missing)
    with pytest.raises(ImportError, match="ScaNN"):
        make_model(neighbors="scann")
