"""APGD agrees with Algorithm 1 in NumPy. Its checkpoints, results, cost and order of targets."""

import fractions
import math

import keras
import numpy as np
import pytest
from keras import ops
from scipy import optimize

import keras_robust as kr
from keras_robust import backend
from keras_robust.attacks.apgd import TARGETED_LOSSES
from keras_robust.attacks.auto_ascent import ascend, ascend_in_l1, checkpoint_windows
from keras_robust.attacks.pgd import LOSSES
from keras_robust.attacks.problem import Problem
from keras_robust.model.classifier import Classifier

pytestmark = pytest.mark.slow_on_jax


@pytest.fixture(scope="module")
def data(embedded_data):
    return tuple(values[:64] for values in embedded_data[1])


def accuracy(attack, model, data):
    return 1 - attack.run(model, *data, seed=0).success_rate


@pytest.mark.parametrize("num_steps", [1, 2, 7, 10, 40, 50, 100, 1000])
def test_checkpoints(num_steps):
    percent = fractions.Fraction(1, 100)
    p = [0, 22 * percent]
    while p[-1] < 1:
        p.append(p[-1] + max(p[-1] - p[-2] - 3 * percent, 6 * percent))
    expected = sorted({w for w in (math.ceil(p_j * num_steps) for p_j in p) if w < num_steps})
    windows = checkpoint_windows(num_steps)
    assert np.flatnonzero(windows >= 0).tolist() == expected
    assert windows[expected].tolist() == np.diff(expected, prepend=0).tolist()
    if num_steps == 100:
        assert expected == [0, 22, 41, 57, 70, 80, 87, 93, 99]


def algorithm_1(loss, x, epsilon, norm, num_steps, checkpoints):
    """Returns the iterates for one example in float64, and the checkpoints that halve the step."""

    def project(z):
        if norm == "linf":
            return np.clip(np.clip(z, x - epsilon, x + epsilon), 0, 1)
        return np.clip(x + (z - x) * min(1, epsilon / max(np.linalg.norm(z - x), 1e-300)), 0, 1)

    def direction(g):
        return np.sign(g) if norm == "linf" else g / max(np.linalg.norm(g), 1e-300)

    eta, halvings = 2 * epsilon, []
    iterates, rose = [x], []
    previous = current = x
    previous_loss = None
    for k in range(num_steps):
        value, gradient = loss(current)
        if k == 0:
            best = best_at_checkpoint = (value, current, gradient)
        else:
            rose.append(value > previous_loss)
        if value > best[0]:
            best = (value, current, gradient)
        if k in checkpoints[1:]:
            since = checkpoints[checkpoints.index(k) - 1]
            few = sum(rose[since:k]) < 0.75 * (k - since)
            none = since not in halvings and best[0] == best_at_checkpoint[0]
            if few or none:
                halvings.append(k)
                eta /= 2
                value, current, gradient = best
            best_at_checkpoint = best
        z = project(current + eta * direction(gradient))
        if k == 0:
            following = project(z)
        else:
            following = project(current + 0.75 * (z - current) + 0.25 * (current - previous))
        previous, current, previous_loss = current, following, value
        iterates.append(following)
    return np.array(iterates), halvings


def algorithm_in_l1(loss, x, epsilon, num_steps):
    """Returns the iterates for one example in float64, and where the step size was reset."""

    def nearest(z, radius):
        size, room = abs(z - x), np.where(z > x, 1 - x, x)

        def length(threshold):
            return np.minimum(np.maximum(size - threshold, 0), room).sum()

        threshold = 0.0
        if length(0.0) > radius:
            threshold = optimize.brentq(lambda t: length(t) - radius, 0, size.max(), xtol=1e-15)
        step = np.minimum(np.maximum(size - threshold, 0), room)
        limit = np.where(z > x, 1.0, 0.0)
        return np.where((step == room) & (step > 0), limit, x + np.sign(z - x) * step)

    lengths = [3 * num_steps // 10, 3 * num_steps // 10, num_steps - 2 * (3 * num_steps // 10)]
    every, resets, iterates, current = max(num_steps // 25, 1), [], [], x
    best, before = (-np.inf, x, None), 0
    for phase, num in enumerate(lengths):
        radius = (3 - phase) * epsilon
        current = nearest(current if phase == 0 else best[1], radius)
        for place in range(num):
            iterates.append(current)
            value, gradient = loss(current)
            if place == 0 or value > best[0]:
                best = (value, current, gradient)
            if place % every == 0:
                changed = np.count_nonzero(abs(best[1] - x) > 1e-6 * epsilon)
                if place == 0 or changed < 0.95 * before:
                    eta = radius
                    _, current, gradient = best
                    resets.append(len(iterates))
                else:
                    eta = max(eta / 1.5, radius / 10)
                before, count = changed, max(int(changed / 1.5), 1)
            if len(iterates) == 1:
                count = math.ceil(0.2 * len(x))
            room = np.where(gradient > 0, 1 - current, current)
            slope = np.where(room > 1e-6 * epsilon, gradient, 0)
            largest = np.argsort(-abs(slope))[:count]
            step = np.zeros(len(x))
            step[largest] = np.sign(slope[largest]) / max(np.count_nonzero(slope[largest]), 1)
            current = nearest(current + eta * step, radius)
    return np.array([*iterates, current]), resets


def squash(hidden):
    """Computes a smooth activation, in NumPy or Keras."""
    return hidden / (1 + hidden * hidden) ** 0.5


class Iterate(Problem):
    """A problem whose margin is largest at the iterate `wanted`, so that APGD returns this one."""

    def __init__(self, *args, wanted, step=0):
        super().__init__(*args)
        self.arguments, self.wanted, self.step = args, wanted, step

    def at(self, step):
        return Iterate(*self.arguments, wanted=self.wanted, step=step)

    def margin(self, x):
        distance = ops.abs(ops.cast(self.step, "int32") - self.wanted)
        return ops.zeros_like(x[:, 0]) - ops.cast(distance, x.dtype)

    def margin_loss_and_gradient(self, loss, x):
        return self.margin(x), *self.loss_and_gradient(loss, x)


@pytest.mark.usefixtures("double_precision")
@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("name", ["ce", "margin", "dlr", "dlr_targeted"])
def test_iterates_agree_with_algorithm_1(norm, name):
    rng = np.random.default_rng(3)
    first, second = 4 * rng.normal(size=(30, 40)), rng.normal(size=(40, 5))
    x = rng.uniform(0.2, 0.8, (12, 30))
    y = (squash(x @ first) @ second).argmax(1)
    t = (y + 2) % 5
    num_steps, epsilon = 60, {"linf": 0.05, "l2": 0.15, "l1": 0.25}[norm]
    checkpoints = [0, 14, 25, 35, 42, 48, 53, 56]
    on_a_plateau = np.zeros(len(x), bool)

    def loss_of(i):
        def loss(point):
            hidden = point @ first
            z = squash(hidden) @ second
            order = np.argsort(-z)
            other = next(j for j in order if j != y[i])
            if name == "ce":
                p = np.exp(z - z.max())
                p /= p.sum()
                value, slope = -np.log(p[y[i]]), p - np.eye(5)[y[i]]
            elif name == "margin":
                value, slope = z[other] - z[y[i]], np.eye(5)[other] - np.eye(5)[y[i]]
            else:
                towards = np.eye(5)[other if name == "dlr" else t[i]] - np.eye(5)[y[i]]
                below = np.eye(5)[order[2]]
                if name == "dlr_targeted":
                    below = (below + np.eye(5)[order[3]]) / 2
                else:
                    # If y has the third largest logit, the ratio is constant, and equal to 1.
                    on_a_plateau[i] |= order[2] == y[i]
                spread = np.eye(5)[order[0]] - below
                value = (towards @ z) / (spread @ z)
                slope = towards / (spread @ z) - spread * (towards @ z) / (spread @ z) ** 2
            return value, first @ ((1 + hidden**2) ** -1.5 * (second @ slope))

        return loss

    expected, halvings = [], set()
    for i in range(len(x)):
        if norm == "l1":
            points, halved = algorithm_in_l1(loss_of(i), x[i], epsilon, num_steps)
        else:
            points, halved = algorithm_1(loss_of(i), x[i], epsilon, norm, num_steps, checkpoints)
        expected.append(points)
        halvings.add(tuple(halved))
    assert len(halvings) > 1
    assert (~on_a_plateau).sum() >= 4

    model = keras.Sequential(
        [
            keras.Input((30,)),
            keras.layers.Dense(40, activation=squash, use_bias=False),
            keras.layers.Dense(5, use_bias=False),
        ]
    )
    model.set_weights([first, second])
    attack = kr.attacks.APGD(epsilon, norm, name, num_steps=num_steps, random_start=False)
    targets = ops.convert_to_tensor(t.astype("int32"))
    loss = LOSSES.get(name) or (lambda z, y: TARGETED_LOSSES[name](z, y, targets))

    def iterate(model, x, y, wanted):
        problem = Iterate(attack, model, y, backend.make_seed(0), wanted=wanted)
        climb = ascend_in_l1 if norm == "l1" else ascend
        return climb(attack, problem, loss, x, x)

    function = Classifier(model).compiled("iterate", iterate)
    # In L1 only images in the ball of radius `epsilon` are returned.
    for wanted in range(36 if norm == "l1" else 0, num_steps + 1):
        found = ops.convert_to_numpy(function(x, y.astype("int32"), np.int32(wanted)))
        np.testing.assert_allclose(
            found[~on_a_plateau], np.array(expected)[~on_a_plateau, wanted], atol=1e-9
        )


def linear(weights):
    """A model with logits `x @ weights`."""
    model = keras.Sequential(
        [keras.Input((len(weights),)), keras.layers.Dense(weights.shape[1], use_bias=False)]
    )
    model.set_weights([weights.astype("float32")])
    return model


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_the_margin_on_a_linear_model_is_maximal(norm):
    # z_1 - z_0 = w^T x is at most w^T x_0 + epsilon ||w||, in the dual norm.
    weights = np.random.default_rng(0).normal(size=(20, 2)).astype("float32")
    x = np.random.default_rng(1).uniform(0.4, 0.6, (16, 20)).astype("float32")
    attack = kr.attacks.APGD(0.3, norm, num_steps=30)
    model = linear(weights)
    function = Classifier(model).compiled(norm, lambda m, *args: attack.perturb(m, *args))
    x_adv = ops.convert_to_numpy(function(x, np.zeros(16, "int32"), backend.make_seed(0)))
    w = (weights[:, 1] - weights[:, 0]).astype("float64")
    largest = x @ w + 0.3 * np.linalg.norm(w, {"linf": 1, "l2": 2, "l1": np.inf}[norm])
    np.testing.assert_allclose(x_adv @ w, largest, rtol=1e-6)


def test_a_fooling_iterate_is_returned_whatever_its_loss():
    # From 0.5 the first step of 2 epsilon goes to 0.8, the only iterate that fools the model. The
    # following steps go to the maximum of the objective at 0.55.
    def model(x):
        return ops.concatenate([ops.zeros_like(x), x - 0.75], axis=1)

    def objective(model, x, y):
        return -ops.square(x[:, 0] - 0.55)

    x, y = np.full((1, 1), 0.5, "float32"), np.zeros(1, int)
    arguments = {"epsilon": 0.3, "random_start": False, "objective": objective}
    last = kr.attacks.PGD(step_size=0.05, num_steps=20, **arguments).run(model, x, y)
    assert not last.success[0]
    result = kr.attacks.APGD(num_steps=20, **arguments).run(model, x, y)
    assert result.success[0]
    np.testing.assert_allclose(result.x_adv, 0.8, atol=1e-6)


def test_only_targeted_classes_are_reached():
    # Class 1 is the most likely of the other classes, but its logit hardly changes. Class 4 is the
    # least likely, but its logit changes fast.
    weights = np.array([[0, 0.01, 0, 0, 0], [0, 0, 0, 0, 20.0]])
    bias = np.array([1.0, 0.9, 0.5, 0.3, -10.0])
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(5)])
    model.set_weights([weights, bias])
    x, y = np.full((3, 2), 0.5, "float32"), np.zeros(3, int)
    for num_targets, success in ((1, False), (3, False), (4, True), (9, True)):
        attack = kr.attacks.APGD(
            0.2,
            loss="margin_targeted",
            num_steps=10,
            num_targets=num_targets,
            random_start=False,
        )
        assert (attack.run(model, x, y, seed=0).success == success).all()


@pytest.mark.slow
@pytest.mark.parametrize("num_samples", [1, 3])
@pytest.mark.parametrize(
    ("loss", "objective", "rounds", "evaluations"),
    [
        ("ce", None, 2, 1),
        ("ce", lambda model, x, y: model(x), 2, 1 + 7),
        ("dlr_targeted", None, 2 * 3, 2),
    ],
    ids=["ce", "objective", "targeted"],
)
def test_cost(loss, objective, rounds, evaluations, num_samples):
    model = linear(2 * np.eye(6, 5))
    y = np.arange(5)
    x = np.eye(5, 6, dtype="float32")
    attack = kr.attacks.APGD(
        1e-3, loss=loss, num_steps=7, num_restarts=2, num_targets=3, objective=objective,
        num_samples=num_samples,
    )  # fmt: skip
    result = attack.run(model, x, y, seed=0)
    assert not result.success.any()
    assert (result.num_gradients == 7 * rounds * num_samples).all()
    # One evaluation of the result of each round, and one of the returned images.
    assert (result.num_evaluations == ((evaluations + 1) * rounds + 1) * num_samples).all()


def test_a_step_runs_the_model_once():
    calls = []

    def model(x):
        calls.append(x)
        return ops.concatenate([x, 1 - x], axis=1)

    def calls_traced(attack):
        def ascent(model, x, y):
            problem = Problem(attack, model, y, backend.make_seed(0))
            return attack.generate(problem, x, x, 0, backend.make_seed(0))[0]

        calls.clear()
        Classifier(model).compiled(repr(attack), ascent)(
            np.full((3, 1), 0.5, "float32"), np.zeros(3, "int32")
        )
        return len(calls)

    once = calls_traced(kr.attacks.PGD(0.1, num_steps=5))
    # This many traces of the loop's body are followed by an evaluation of the last iterate.
    times_traced = {"tensorflow": 1, "jax": 2}[keras.backend.backend()]
    assert calls_traced(kr.attacks.APGD(0.1, num_steps=5)) == once + times_traced


def first_state(attack, model, x, y, mask=None):
    """Returns the target classes, in order, from the state after the first round."""

    def first_round(classifier, x, y, seed):
        state = attack.first_state(x, mask)
        return attack.round(classifier, x, y, x, state, 0, seed, mask).state[0]

    arrays = x.astype("float32"), y.astype("int32"), backend.make_seed(0)
    return ops.convert_to_numpy(Classifier(model).compiled(repr(attack), first_round)(*arrays))


@pytest.mark.parametrize("case", ["linf", "l2", "mask", "radii", "objective", "probabilities"])
def test_target_order_by_distance(case):
    # `z = W tanh(V x)`, whose gradients are known. Distances are in units of the radii. Features
    # with a mask or a radius of 0 do not count.
    rng = np.random.default_rng()

    def draw():
        first, second = rng.normal(size=(12, 20)) / 3, rng.normal(size=(20, 7))
        x = rng.uniform(0.3, 0.7, (40, 12))
        hidden = np.tanh(x @ first)
        scores = hidden @ second
        y = scores.argmax(1)
        mask, epsilon = np.ones(12), np.full(12, 0.1)
        if case == "mask":
            mask[3:8] = 0
        if case == "radii":
            epsilon = rng.uniform(0, 0.2, 12) * (np.arange(12) > 3)
        distances = np.full((40, 7), np.inf)
        for i, (row, label) in enumerate(zip(hidden, y, strict=True)):
            slopes = (first * (1 - row**2)) @ (second[:, [label]] - second)
            slopes *= (mask * epsilon)[:, None]
            lengths = np.linalg.norm(slopes, {"l2": 2}.get(case, 1), axis=0)
            others = np.arange(7) != label
            distances[i, others] = (scores[i, label] - scores[i])[others] / lengths[others]
        expected = distances.argsort(1)[:, :4]
        by_score = (-np.where(np.arange(7) == y[:, None], -np.inf, scores)).argsort(1)[:, :4]
        return (expected != by_score).any(1).mean(), first, second, x, y, mask, epsilon, distances

    # For a few networks, the orders by score and by distance are nearly the same.
    differing, first, second, x, y, mask, epsilon, distances = next(
        drawn for drawn in iter(draw, None) if drawn[0] > 0.3
    )
    layers = [keras.layers.Dense(20, "tanh", use_bias=False), keras.layers.Dense(7, use_bias=False)]
    model = keras.Sequential([keras.Input((12,)), *layers])
    model.set_weights([first, second])
    options = {"norm": "l2" if case == "l2" else "linf"}
    if case == "objective":
        base = model
        model = linear(rng.normal(size=(12, 7)))
        options["objective"] = lambda _, x, y: base(x)
    if case == "probabilities":
        model = keras.Sequential([model, keras.layers.Softmax()])
        options["from_logits"] = False
    attack = kr.attacks.APGD(
        epsilon if case == "radii" else 0.1, loss="margin_targeted", num_steps=1, num_targets=4,
        target_order="distance", **options,
    )  # fmt: skip
    found = first_state(attack, model, x, y, np.tile(mask > 0, (40, 1)) if case == "mask" else None)
    expected = distances.argsort(1)[:, :4]
    assert differing > 0.3
    # Compares distances, because classes at nearly equal distances may be swapped.
    np.testing.assert_allclose(
        np.take_along_axis(distances, found, 1), np.take_along_axis(distances, expected, 1),
        rtol=1e-4,
    )  # fmt: skip


def test_order_by_distance_targets_the_nearest_class_first():
    # Class 1 has the larger score, 0.9 against 0.5, but its boundary is twice as far, at 1.
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3)])
    model.set_weights([np.array([[0, -0.1, 1.0], [0, 0, 0]]), np.array([1.0, 0.95, 0.0])])
    x, y = np.full((3, 2), 0.5, "float32"), np.zeros(3, int)
    for order, success in (("score", False), ("distance", True)):
        attack = kr.attacks.APGD(
            0.6, loss="margin_targeted", num_steps=10, num_targets=1, target_order=order,
            bounds=(-9, 9),
        )  # fmt: skip
        assert (attack.run(model, x, y, seed=0).success == success).all()


@pytest.mark.slow
@pytest.mark.parametrize("num_samples", [1, 3])
@pytest.mark.parametrize(("num_classes", "num_targets"), [(2, 3), (3, 4), (6, 3)])
def test_cost_of_target_order(num_classes, num_targets, num_samples):
    model = linear(2 * np.eye(num_classes))
    x, y = np.eye(num_classes, dtype="float32"), np.arange(num_classes)
    attack = kr.attacks.APGD(
        1e-3, loss="margin_targeted", num_steps=7, num_restarts=2, num_targets=num_targets,
        num_samples=num_samples, target_order="distance",
    )  # fmt: skip
    result = attack.run(model, x, y, seed=0)
    assert not result.success.any()
    rounds = 2 * min(num_targets, num_classes - 1)
    # A gradient for each other class, unless there is only one.
    ordering = num_classes - 1 if num_classes > 2 else 0
    assert (result.num_gradients == (7 * rounds + ordering) * num_samples).all()
    # Two evaluations per round, one of the returned images, and one to find the likely classes.
    assert (result.num_evaluations == (2 * rounds + 1 + 1) * num_samples).all()


@pytest.mark.slow
@pytest.mark.parametrize(("norm", "epsilon"), [("linf", 0.04), ("l2", 0.8)])
def test_is_as_strong_as_pgd_at_the_same_cost(norm, epsilon, trained_model, data):
    pgd = accuracy(kr.attacks.PGD(epsilon, num_steps=18, norm=norm), trained_model, data)
    assert 0.3 < pgd < 0.7
    for attack in (
        kr.attacks.APGD(epsilon, norm, num_steps=18),
        kr.attacks.APGD(epsilon, norm, "dlr_targeted", num_steps=6, num_targets=3),
    ):
        assert accuracy(attack, trained_model, data) <= pgd


@pytest.mark.parametrize("loss", ["dlr", "dlr_targeted"])
def test_dlr_losses_are_invariant_to_scaled_logits(trained_model, data, loss):
    # Scaling by a power of 2 does not change the rounding, so the images are equal.
    x, y = (values[:32] for values in data)
    scaled = keras.Sequential([trained_model, keras.layers.Rescaling(1024.0)])
    attack = kr.attacks.APGD(0.04, loss=loss, num_steps=10, num_targets=2)
    results = [attack.run(model, x, y, seed=0) for model in (trained_model, scaled)]
    np.testing.assert_array_equal(results[0].x_adv, results[1].x_adv)


def test_targeted_attack_reaches_the_target(trained_model, data):
    x, y = data
    attack = kr.attacks.APGD(0.4, num_steps=20, targeted=True)
    assert attack.run(trained_model, x, (y + 1) % 10, seed=0).success.mean() > 0.95


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"epsilon": -0.1}, "`epsilon`"),
        ({"norm": "l3"}, "`norm`.*'l1'.*Received: norm='l3'"),
        ({"loss": "hinge"}, "`loss`.*'dlr_targeted'.*Received: loss='hinge'"),
        ({"num_steps": 0}, "`num_steps`"),
        ({"num_targets": 0}, "`num_targets`"),
        ({"rho": 1.5}, "`rho`.*at least 0 and at most 1. Received: rho=1.5"),
        ({"rho": float("nan")}, "`rho`"),
        ({"target_order": "near"}, "`target_order`.*'distance'.*Received: target_order='near'"),
        ({"num_restarts": 2, "random_start": False}, "`num_restarts` must be 1 without a random"),
        ({"targeted": True, "loss": "dlr_targeted"}, "`loss`.*when `targeted=True`"),
    ],
    ids=str,
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        kr.attacks.APGD(**{"epsilon": 0.1, **arguments})


@pytest.mark.parametrize(("loss", "num_classes"), [("dlr", 2), ("dlr_targeted", 3)])
def test_dlr_losses_need_enough_classes(loss, num_classes):
    x, y = np.full((2, 4), 0.5, "float32"), np.zeros(2, int)
    attack = kr.attacks.APGD(0.1, loss=loss, num_steps=2)
    attack.run(linear(-np.eye(4, num_classes + 1)), x, y)
    with pytest.raises(ValueError, match=f"model of {num_classes} classes.*loss='{loss}'"):
        attack.run(linear(-np.eye(4, num_classes)), x, y)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_nan_gradient_is_an_error(norm):
    # The derivative of the square root at 0 is infinite, and its product with 0 is NaN.
    def model(x):
        z = ops.sqrt(ops.maximum(x[:, 0] - 0.5, 0.0) * 0.0)
        return ops.stack([z + 2, -z], axis=1)

    attack = kr.attacks.APGD(0.1, norm, num_steps=30, random_start=False)
    with pytest.raises(ValueError, match="NaN or infinite"):
        attack(model, np.full((2, 4), 0.5, "float32"), np.zeros(2, int))
