"""APGD against Algorithm 1 in NumPy, its checkpoints, what it returns and what it costs."""

import contextlib
import fractions
import math

import keras
import numpy as np
import pytest
from keras import ops

import keras_robust as kr
from keras_robust import backend
from keras_robust.attacks.apgd import TARGETED_LOSSES, _windows
from keras_robust.attacks.pgd import LOSSES
from keras_robust.attacks.problem import Problem


@pytest.fixture(scope="module")
def data(embedded_data):
    return tuple(values[:200] for values in embedded_data[1])


def accuracy(attack, model, data):
    return 1 - attack.run(model, *data, seed=0).success_rate


@pytest.mark.parametrize("num_steps", [1, 2, 7, 10, 40, 50, 100, 1000])
def test_checkpoints(num_steps):
    percent = fractions.Fraction(1, 100)
    p = [0, 22 * percent]
    while p[-1] < 1:
        p.append(p[-1] + max(p[-1] - p[-2] - 3 * percent, 6 * percent))
    expected = sorted({w for w in (math.ceil(p_j * num_steps) for p_j in p) if w < num_steps})
    windows = _windows(num_steps)
    assert np.flatnonzero(windows >= 0).tolist() == expected
    assert windows[expected].tolist() == np.diff(expected, prepend=0).tolist()
    if num_steps == 100:
        assert expected == [0, 22, 41, 57, 70, 80, 87, 93, 99]


def algorithm_1(loss, x, epsilon, norm, num_steps, checkpoints):
    """The iterates for one example, in float64; `loss` returns a value and a gradient."""

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


def squash(hidden):
    """A smooth activation, in NumPy or Keras."""
    return hidden / (1 + hidden * hidden) ** 0.5


class Iterate(Problem):
    """Its margin is the largest at the iterate that is asked for, so that this one is returned."""

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


@pytest.fixture
def double_precision():
    """In float32, rounding decides which of two nearly equal losses is the larger."""
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    with contextlib.ExitStack() as stack:
        if keras.backend.backend() == "jax":
            import jax

            stack.enter_context(jax.enable_x64(True))
        yield
    keras.config.set_floatx("float32")


@pytest.mark.usefixtures("double_precision")
@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("name", ["ce", "margin", "dlr", "dlr_targeted"])
def test_iterates_are_those_of_algorithm_1(norm, name):
    rng = np.random.default_rng(3)
    first, second = 4 * rng.normal(size=(30, 40)), rng.normal(size=(40, 5))
    x = rng.uniform(0.2, 0.8, (12, 30))
    y = (squash(x @ first) @ second).argmax(1)
    t = (y + 2) % 5
    num_steps, epsilon = 60, {"linf": 0.05, "l2": 0.15}[norm]
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
                    # The ratio is 1 where y has the third largest logit, whatever the logits.
                    on_a_plateau[i] |= order[2] == y[i]
                spread = np.eye(5)[order[0]] - below
                value = (towards @ z) / (spread @ z)
                slope = towards / (spread @ z) - spread * (towards @ z) / (spread @ z) ** 2
            return value, first @ ((1 + hidden**2) ** -1.5 * (second @ slope))

        return loss

    expected, halvings = [], set()
    for i in range(len(x)):
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
        return attack.ascend(problem, loss, x, x)

    function = backend.compiled(model, "iterate", iterate)
    for wanted in range(num_steps + 1):
        found = ops.convert_to_numpy(function(x, y.astype("int32"), np.int32(wanted)))
        np.testing.assert_allclose(
            found[~on_a_plateau], np.array(expected)[~on_a_plateau, wanted], atol=1e-9
        )
