"""FAB agrees with exact distances on linear models, and with PGD and Foolbox in strength."""

import keras
import numpy as np
import pytest
from keras import ops
from scipy import optimize

import keras_robust as kr
from keras_robust import backend
from keras_robust.model.classifier import Classifier

pytestmark = pytest.mark.slow_on_jax

NORMS = ["linf", "l2", "l1"]
ORDERS = {"linf": np.inf, "l2": 2, "l1": 1}


def linear_model(num_classes=4, shape=(3, 3, 1), bias=0.0, seed=0):
    """Returns a linear classifier, its weights (features, num_classes) and its biases."""
    rng = np.random.default_rng(seed)
    weights = rng.normal(size=(np.prod(shape), num_classes)).astype("float32")
    biases = bias * rng.normal(size=num_classes).astype("float32")
    model = keras.Sequential(
        [keras.Input(shape), keras.layers.Flatten(), keras.layers.Dense(num_classes)]
    )
    model.set_weights([weights, biases])
    return model, weights, biases


@pytest.fixture
def small_model():
    """Returns a network of one hidden layer with random weights and curved boundaries."""
    return keras.Sequential(
        [
            keras.Input((3, 3, 1)),
            keras.layers.Flatten(),
            keras.layers.Dense(32, "tanh", kernel_initializer=keras.initializers.HeNormal(1)),
            keras.layers.Dense(4, kernel_initializer=keras.initializers.HeNormal(2)),
        ]
    )


def images(num=20, shape=(3, 3, 1), bounds=(0.0, 1.0), seed=1):
    rng = np.random.default_rng(seed)
    x = rng.uniform(*bounds, (num, *shape))
    return np.where(rng.random(x.shape) < 0.3, rng.choice(bounds, x.shape), x).astype("float32")


def exact_distance(x, normal, offset, norm, bounds=(0.0, 1.0)):
    """Returns the least norm of `d` with `<normal, d> = offset` and `x + d` in `bounds`."""
    size = len(x)
    limits = [(bounds[0] - v, bounds[1] - v) for v in x]
    if norm == "linf":
        ones = np.ones((size, 1))
        result = optimize.linprog(
            np.append(np.zeros(size), 1.0),
            A_ub=np.block([[np.eye(size), -ones], [-np.eye(size), -ones]]),
            b_ub=np.zeros(2 * size),
            A_eq=np.append(normal, 0)[None],
            b_eq=[offset],
            bounds=[*limits, (0, None)],
        )
        return result.fun if result.status == 0 else np.inf
    if norm == "l1":
        result = optimize.linprog(
            np.ones(2 * size),
            A_eq=np.append(normal, -normal)[None],
            b_eq=[offset],
            bounds=[*((0, b) for _, b in limits), *((0, -a) for a, _ in limits)],
        )
        return result.fun if result.status == 0 else np.inf
    if np.maximum(normal * [b for _, b in limits], normal * [a for a, _ in limits]).sum() < offset:
        return np.inf
    constraint = {"type": "eq", "fun": lambda d: normal @ d - offset, "jac": lambda d: normal}
    result = optimize.minimize(
        lambda d: d @ d, np.zeros(size), jac=lambda d: 2 * d, method="SLSQP", bounds=limits,
        constraints=constraint, options={"ftol": 1e-14, "maxiter": 500},
    )  # fmt: skip
    assert result.success
    return np.sqrt(result.fun)


def exact_distances(x, y, weights, biases, norm, bounds=(0.0, 1.0)):
    """Returns the distances to `z_t = z_y` for each class `t`, `(num_images, num_classes)`."""
    flat = x.reshape(len(x), -1).astype("float64")
    scores = flat @ weights + biases
    distances = np.full(scores.shape, np.inf)
    for i, label in enumerate(y):
        for t in set(range(scores.shape[1])) - {label}:
            normal = (weights[:, t] - weights[:, label]).astype("float64")
            offset = scores[i, label] - scores[i, t]
            distances[i, t] = exact_distance(flat[i], normal, offset, norm, bounds)
    return distances


def classes(model, x):
    return ops.convert_to_numpy(model(x)).argmax(1)


@pytest.mark.parametrize(
    ("norm", "bounds"), [("linf", (0.0, 1.0)), ("l2", (-2.0, 0.5)), ("l1", (0.0, 1.0))]
)
def test_finds_the_nearest_boundary_of_a_linear_model(norm, bounds):
    model, weights, biases = linear_model()
    x = images(bounds=bounds)
    y = classes(model, x)
    exact = exact_distances(x, y, weights, biases, norm, bounds).min(1)
    reachable = exact < np.inf
    assert reachable.mean() > 0.7
    # The image is beyond the boundary by a thousandth of the distance, or by the overshoot `eta`.
    # The overshoot may be clipped at the bounds, which changes its direction. (In L1 all values
    # but one are at their bounds.)
    for eta, excess in ((1.05, 1e-2), (1.001, 1e-3)):
        attack = kr.attacks.FAB(norm=norm, num_steps=5, eta=eta, bounds=bounds)
        result = attack.run(model, x, y, seed=0)
        np.testing.assert_array_equal(result.success, reachable)
        ratio = result.norms[norm][reachable] / exact[reachable]
        assert ratio.min() > 1 + (1e-6 if norm == "l1" else 1e-4)
        assert ratio.max() < 1 + excess
    assert (classes(model, result.x_adv) != y)[reachable].all()
    np.testing.assert_array_equal(result.x_adv[~reachable], x[~reachable])
    assert result.x_adv.min() >= bounds[0]
    assert result.x_adv.max() <= bounds[1]


def test_images_are_still_misclassified_when_rounded_to_float16():
    model, weights, biases = linear_model()
    x = images(40).astype("float16")
    y = classes(model, x)
    exact = exact_distances(x, y, weights, biases, "linf").min(1)
    result = kr.attacks.FAB(num_steps=10).run(model, x, y, seed=0)
    reachable = (exact > 0.01) & (exact < np.inf)
    assert reachable.mean() > 0.7
    assert result.success[reachable].all()
    np.testing.assert_allclose(result.norms["linf"][reachable], exact[reachable], rtol=0.05)


def test_targets_the_most_likely_other_classes():
    norm = "l2"
    model, weights, biases = linear_model(bias=1.0)
    x = images()
    logits = ops.convert_to_numpy(model(x))
    order = np.argsort(-logits, axis=1)
    exact = exact_distances(x, order[:, 0], weights, biases, norm)
    for num_targets in (1, 2):
        nearest = np.take_along_axis(exact, order[:, 1 : 1 + num_targets], axis=1).min(1)
        attack = kr.attacks.FAB(norm=norm, num_steps=10, num_targets=num_targets, eta=1.001)
        found = attack.run(model, x, order[:, 0], seed=0)
        # The path may cross the boundary of another class, so the image may be nearer.
        reachable = found.success & (nearest < np.inf)
        assert reachable.sum() > 5
        assert (found.norms[norm] <= 1.001 * nearest)[reachable].all()
        assert found.num_gradients.max() == 10 * num_targets
    assert (exact.min(1) < 0.99 * exact[np.arange(20), order[:, 1]]).any()


@pytest.mark.slow
@pytest.mark.parametrize("norm", NORMS)
def test_succeeds_if_and_only_if_the_boundary_is_in_the_ball(norm):
    model, weights, biases = linear_model()
    x = images(40)
    y = classes(model, x)
    exact = exact_distances(x, y, weights, biases, norm).min(1)
    order = np.sort(exact)
    epsilon = float(order[20] + order[21]) / 2
    attack = kr.attacks.FAB(epsilon, norm=norm, num_steps=5)
    result = attack.run(model, x, y, seed=0)
    np.testing.assert_array_equal(result.success, exact < epsilon)
    assert result.norms[norm].max() <= epsilon * (1 + 1e-6)
    np.testing.assert_array_equal(result.x_adv[~result.success], x[~result.success])

    function = Classifier(model).compiled("fab", lambda m, *args: attack.perturb(m, *args))
    everywhere = ops.convert_to_numpy(function(x, y, backend.make_seed(0)))
    delta = (everywhere - x).reshape(40, -1)
    lengths = np.linalg.norm(delta, ORDERS[norm], axis=1)
    assert lengths.max() <= epsilon * (1 + 1e-6)
    # A failed attack ends on the sphere of radius `epsilon`.
    np.testing.assert_allclose(lengths[~result.success], epsilon, rtol=1e-5)


@pytest.mark.parametrize(
    ("norm", "epsilon", "dtype"),
    [
        ("linf", None, "float32"),
        ("l2", 0.0, "float32"),
        ("linf", 0.3, "float16"),
        ("l2", 0.3, "float16"),
        ("l2", 0.3, "float64"),
        ("l1", 0.0, "float32"),
        ("l1", 0.7, "float16"),
        ("l1", 0.7, "float64"),
    ],
)
def test_stays_in_the_ball_and_the_bounds(norm, epsilon, dtype):
    if dtype == "float64" and keras.backend.backend() == "jax":
        pytest.skip("JAX computes in float32 unless its x64 mode is on")
    bounds = (-2.1, 2.6)
    model, _, _ = linear_model()
    x = images(bounds=bounds).astype(dtype).clip(*np.array(bounds, dtype))
    y = np.arange(20) % 4
    attack = kr.attacks.FAB(epsilon, norm=norm, num_steps=3, num_restarts=2, bounds=bounds)
    result = attack.run(model, x, y, seed=0)
    assert result.x_adv.dtype == dtype
    assert result.x_adv.min() >= np.array(bounds[0], dtype)
    assert result.x_adv.max() <= np.array(bounds[1], dtype)
    assert result.success.any() == (epsilon != 0.0 or (classes(model, x) != y).any())
    if epsilon is not None:
        assert result.norms[norm].max() <= epsilon + 8 * np.finfo(dtype).eps * x[0].size ** (
            1 / ORDERS[norm]
        )


def test_misclassified_images_are_not_changed():
    model, _, _ = linear_model()
    x = images()
    y = (classes(model, x) + 1) % 4
    for epsilon in (None, 0.1):
        result = kr.attacks.FAB(epsilon, num_steps=5).run(model, x, y, seed=0)
        assert result.success.all()
        np.testing.assert_array_equal(result.x_adv, x)
        assert result.num_gradients.max() == 0


@pytest.mark.slow
@pytest.mark.parametrize("norm", NORMS)
def test_more_targets_and_restarts_find_no_larger_perturbations(norm, small_model):
    x = images(100)
    y = classes(small_model, x)
    first, targets, restarts = (
        kr.attacks.FAB(norm=norm, num_steps=5, num_targets=t, num_restarts=r).run(
            small_model, x, y, seed=0
        )
        for t, r in ((1, 1), (3, 1), (3, 2))
    )
    for fewer, more in ((first, targets), (targets, restarts)):
        assert more.success[fewer.success].all()
        assert (more.norms[norm] <= fewer.norms[norm])[fewer.success].all()
    assert (targets.norms[norm] < 0.99 * first.norms[norm])[first.success].any()
    np.testing.assert_array_equal(restarts.num_gradients, 5 * 3 * 2)


@pytest.mark.parametrize(("norm", "epsilon"), [("linf", None), ("l2", None), ("l2", 0.4)])
def test_restarts_leave_a_point_without_gradient(norm, epsilon):
    # z_1 - z_0 = ||x' - x||_2^2 - 0.3^2: the gradient at x is 0, and the boundary is the sphere of
    # radius 0.3 around x, at an L-infinity distance of at least 0.1.
    x, y = np.full((8, 3, 3, 1), 0.5, "float32"), np.zeros(8, "int32")

    def model(z):
        squares = ops.sum(ops.square(z - 0.5), axis=(1, 2, 3))
        return ops.stack([ops.full_like(squares, 0.09), squares], axis=1)

    def found(num_restarts, seed):
        attack = kr.attacks.FAB(epsilon, norm=norm, num_steps=40, num_restarts=num_restarts)
        return attack.run(model, x, y, seed=seed)

    assert not found(1, 0).success.any()
    one, again, other = (found(2, seed) for seed in (1, 1, 2))
    assert one.success.all()
    if norm == "l2":
        assert one.norms["l2"].min() > 0.3 - 1e-6
        assert epsilon or one.norms["l2"].max() < 0.303
    else:
        assert one.norms["linf"].min() > 0.1 - 1e-6
        assert epsilon or one.norms["linf"].max() < 0.15
    np.testing.assert_array_equal(one.x_adv, again.x_adv)
    assert abs(one.x_adv - other.x_adv).max() > 0.01


@pytest.mark.slow
@pytest.mark.parametrize(("norm", "epsilon"), [("linf", 0.03), ("l2", 0.5), ("l1", 4.0)])
def test_is_as_strong_as_pgd(norm, epsilon, trained_model, embedded_data):
    x, y = (values[:100] for values in embedded_data[1])
    pgd = kr.attacks.PGD(epsilon, num_steps=20, norm=norm).run(trained_model, x, y, seed=0)
    fab = kr.attacks.FAB(epsilon, norm=norm, num_steps=10, num_targets=3).run(
        trained_model, x, y, seed=0
    )
    assert 0.3 < pgd.success_rate < 0.8
    assert fab.success_rate >= pgd.success_rate - 0.01
    assert fab.norms[norm].max() <= epsilon + 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("norm", NORMS)
def test_scaling_the_logits_does_not_change_the_images(norm, small_model):
    x = images()
    y = classes(small_model, x)
    attack = kr.attacks.FAB(norm=norm, num_steps=5)
    expected = attack.run(small_model, x, y, seed=0)
    assert expected.success.mean() > 0.5
    scaled = keras.Sequential([small_model, keras.layers.Rescaling(1024.0)])
    result = attack.run(scaled, x, y, seed=0)  # A power of 2 does not change the rounding.
    np.testing.assert_allclose(result.x_adv, expected.x_adv, atol=1e-6)
    softmax = keras.Sequential([scaled, keras.layers.Softmax()])
    attack = kr.attacks.FAB(norm=norm, num_steps=5, from_logits=False)
    result = attack.run(softmax, x, y, seed=0)
    np.testing.assert_allclose(result.x_adv, expected.x_adv, atol=1e-6)


def test_success_is_that_of_the_model_and_not_of_the_objective():
    model, weights, biases = linear_model()
    stairs = keras.Sequential(
        [
            keras.Input((3, 3, 1)),
            keras.layers.Lambda(lambda x: ops.round(20 * x) / 20, name="stairs"),
            model,
        ]
    )
    x = images()
    y = classes(stairs, x)
    objective = kr.attacks.BPDA("stairs")
    attack = kr.attacks.FAB(num_steps=20, objective=objective)
    result = attack.run(stairs, x, y, seed=0)
    assert result.success.mean() > 0.7
    np.testing.assert_array_equal(classes(stairs, result.x_adv) != y, result.success)
    # Each value is rounded by at most 1/40.
    exact = exact_distances(x, y, weights, biases, "linf").min(1)
    assert (abs(result.norms["linf"] - exact)[result.success] < 0.06).all()

    def one_value(model, x, y):
        return ops.max(model(x), axis=-1)

    with pytest.raises(ValueError, match="needs class scores"):
        kr.attacks.FAB(num_steps=2, objective=one_value).run(model, x, y, seed=0)


class Noise(keras.layers.GaussianNoise):
    def call(self, inputs, training=False):
        return super().call(inputs, training=True)


@pytest.mark.slow
def test_num_samples_averages_over_draws_of_a_random_model():
    # Success is not tested, because it depends on the draws so close to the boundary.
    model, _, _ = linear_model()
    noisy = keras.Sequential([keras.Input((3, 3, 1)), Noise(0.3), model])
    x = images()
    y = classes(model, x)
    one, four = (kr.attacks.FAB(num_steps=5, num_targets=1, num_samples=n) for n in (1, 4))
    results = [attack.run(m, x, y, seed=0) for attack in (one, four) for m in (model, noisy)]
    np.testing.assert_allclose(results[0].x_adv, results[2].x_adv, atol=1e-5)
    assert results[2].num_gradients.max() == 20
    assert abs(results[1].x_adv - results[3].x_adv).max() > 1e-3
    np.testing.assert_array_equal(results[3].x_adv, four.run(noisy, x, y, seed=0).x_adv)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("epsilon", -0.1),
        ("epsilon", float("nan")),
        ("norm", "l3"),
        ("num_steps", 0),
        ("num_restarts", 0),
        ("num_targets", 0),
        ("alpha_max", 1.1),
        ("eta", 0.9),
        ("beta", 0.0),
        ("beta", 1.1),
    ],
)
def test_bad_arguments(name, value):
    with pytest.raises(ValueError, match=f"`{name}`.*Received: {name}="):
        kr.attacks.FAB(**{name: value})


@pytest.mark.slow
@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="Foolbox attacks TensorFlow")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_images_are_nearer_than_those_of_deepfool(norm, trained_model, embedded_data):
    foolbox = pytest.importorskip("foolbox", reason="Foolbox is in the extra `peers`")
    import tensorflow as tf

    x, y = (values[:200] for values in embedded_data[1])
    peer = {"linf": foolbox.attacks.LinfDeepFoolAttack, "l2": foolbox.attacks.L2DeepFoolAttack}
    _, x_adv, _ = peer[norm](candidates=10)(
        foolbox.TensorFlowModel(trained_model, bounds=(0, 1)), tf.constant(x), tf.constant(y),
        epsilons=None,
    )  # fmt: skip
    delta = (x_adv.numpy() - x).reshape(len(x), -1)
    theirs = np.linalg.norm(delta, {"linf": np.inf, "l2": 2}[norm], axis=1)
    ours = kr.attacks.FAB(norm=norm, num_steps=20).run(trained_model, x, y, seed=0)
    assert ours.success.all()
    assert np.median(ours.norms[norm]) <= np.median(theirs)
    # Our images are beyond the boundary by a thousandth of the distance.
    assert (ours.norms[norm] <= 1.002 * theirs).mean() > 0.9
