"""Custom attacks implement `generate`, and their results are checked."""

import keras
import numpy as np
import pytest
from keras import ops

import keras_robust as kr

rng = np.random.default_rng(0)
X = rng.uniform(0.2, 0.8, (12, 6, 6, 1)).astype("float32")


@pytest.fixture
def model():
    return keras.Sequential([keras.Input((6, 6, 1)), keras.layers.Flatten(), keras.layers.Dense(3)])


@pytest.fixture
def y(model):
    return model.predict(X, verbose=0).argmax(axis=1)


class Images(kr.attacks.Attack):
    """Returns images without counts."""

    def generate(self, problem, x, start, index, seed):
        return x + 0.1


class Masked(kr.attacks.Attack):
    """FGSM on the values where `mask` is 1. Also returns the number of gradients."""

    def __init__(self, epsilon, mask, bounds=(0.0, 1.0), from_logits=True):
        super().__init__(bounds=bounds, from_logits=from_logits)
        self.epsilon, self.mask = epsilon, mask

    def generate(self, problem, x, start, index, seed):
        step = self.epsilon * self.mask * ops.sign(problem.gradient(kr.ops.margin, x))
        return kr.attacks.RoundResult(x + step, num_gradients=1)


class Counting(kr.attacks.Attack):
    """Passes a state from round to round."""

    stops_when_fooled = False

    def num_rounds(self, num_classes):
        return 3

    def initial_state(self, x):
        return (ops.zeros((ops.shape(x)[0],)),)

    def generate(self, problem, x, start, index, seed, moved):
        moved = moved + 0.01
        images = x + ops.reshape(moved, (-1, 1, 1, 1))
        return kr.attacks.RoundResult(images, 0, 2, (moved,))

    def improves(self, x, new, new_margin, best, best_margin):
        return new_margin > -np.inf


class TooFar(kr.attacks.Attack):
    """Returns images at distance `factor * epsilon`."""

    def __init__(self, epsilon, factor, norm="linf"):
        super().__init__()
        self.epsilon, self.factor, self.norm = epsilon, factor, norm

    def generate(self, problem, x, start, index, seed):
        direction = ops.ones_like(x) / (6.0 if self.norm == "l2" else 1.0)
        return x + self.factor * self.epsilon * direction


def test_generate_may_return_images(model, y):
    found = Images().run(model, X, y)
    assert (found.num_gradients == 0).all()
    moved = found.x_adv[found.success]
    np.testing.assert_allclose(moved, X[found.success] + 0.1, atol=1e-6)


def test_array_arguments_are_compared_by_content(model, y):
    for rows in (slice(0, 2), slice(3, 5)):
        mask = np.zeros((6, 6, 1), "float32")
        mask[rows] = 1
        found = Masked(0.2, mask).run(model, X, np.full(12, 0))
        assert (found.num_gradients == 1).all()
        moved = (found.x_adv != X).any(axis=(0, 2, 3))
        if found.success.any():
            assert set(np.flatnonzero(moved)) <= set(range(6)[rows])
    large = np.zeros((6, 6, 1), "float32")
    other = np.where(np.arange(36).reshape(6, 6, 1) == 35, 1, large).astype("float32")
    assert Masked(0.2, large).key != Masked(0.2, other).key
    assert Masked(0.2, large).key == Masked(0.3, large.copy()).key


def test_state_and_counts_are_passed_on(model, y):
    found = Counting().run(model, X, y)
    np.testing.assert_array_equal(found.num_evaluations - (~found.success), 9)
    moved = found.x_adv[found.success]
    np.testing.assert_allclose(moved, X[found.success] + 0.03, atol=1e-6)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_images_outside_of_the_ball_are_an_error(model, y, norm):
    TooFar(0.1, 1.0, norm).run(model, X, y)
    with pytest.raises(ValueError, match=r"TooFar\(epsilon=0.1.* has left its ball"):
        TooFar(0.1, 1.1, norm).run(model, X, y)
    with pytest.raises(ValueError, match="has left its ball"):
        kr.evaluate(model, X, y, [TooFar(0.1, 1.1, norm)], verbose=0)


@pytest.mark.parametrize("returned", [lambda x: {"x_adv": x}, lambda x: (x, 0, 1)])
def test_a_wrong_type_from_generate_is_an_error(model, y, returned):
    class Wrong(kr.attacks.Attack):
        def generate(self, problem, x, start, index, seed):
            return returned(x)

    with pytest.raises(ValueError, match=r"`Wrong.generate` must return the images"):
        Wrong().run(model, X, y)


def test_replace_and_evaluate_a_custom_attack(model, y):
    attack = Masked(0.1, np.ones((6, 6, 1), "float32"))
    assert attack.replace(epsilon=0.2).epsilon == 0.2
    with pytest.raises(AttributeError, match=r"attack\.replace"):
        attack.mask = None
    report = kr.evaluate(model, X, y, [attack], verbose=0, checks=False)
    fgsm = kr.evaluation.robust_accuracy(model, X, y, attack=kr.attacks.FGSM(0.1, loss="margin"))
    assert report.accuracy("worst case") == fgsm
