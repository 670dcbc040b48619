"""Carlini and Wagner's attack against closed forms and a float64 reference."""

import keras
import numpy as np
import pytest
from keras import ops

import keras_robust as kr

SETTINGS = {"learning_rate": 0.02, "num_steps": 200, "initial_const": 0.1}


def linear_model(scale=1.0, seed=0):
    rng = np.random.default_rng(seed)
    model = keras.Sequential(
        [keras.Input((4, 4, 1)), keras.layers.Flatten(), keras.layers.Dense(2)]
    )
    kernel = rng.normal(size=(16, 2)).astype("float32")
    model.set_weights([scale * kernel, np.zeros(2, "float32")])
    x = rng.uniform(0.4, 0.6, (20, 4, 4, 1)).astype("float32")
    z = x.reshape(20, -1) @ kernel
    distance = abs(z[:, 1] - z[:, 0]) / np.linalg.norm(kernel[:, 1] - kernel[:, 0])
    return model, x, z.argmax(1), distance


@pytest.mark.parametrize("scale", [0.001, 1.0, 1000.0])
def test_finds_the_distance_to_the_hyperplane(scale):
    model, x, y, distance = linear_model(scale)
    result = kr.attacks.CarliniWagnerL2(**SETTINGS).run(model, x, y)
    assert result.success.all()
    ratio = result.norms["l2"] / distance
    assert ratio.min() >= 1 - 1e-5
    assert np.median(ratio) < 1.02
    assert ratio.max() < 1.1


def test_confidence_goes_beyond_the_boundary():
    model, x, y, _ = linear_model()
    result = kr.attacks.CarliniWagnerL2(confidence=1.5, **SETTINGS).run(model, x, y)
    z = ops.convert_to_numpy(model(result.x_adv))
    margin = np.where(y == 0, z[:, 1] - z[:, 0], z[:, 0] - z[:, 1])
    assert margin.min() >= 1.5 - 1e-5
    assert np.median(margin) < 1.6


def test_targeted_reaches_the_target(trained_model, embedded_data):
    x, y = (values[:32] for values in embedded_data[1])
    target = (y + 1) % 10
    attack = kr.attacks.CarliniWagnerL2(
        learning_rate=0.1, num_steps=100, initial_const=1.0, binary_search_steps=3, targeted=True
    )
    result = attack.run(trained_model, x, target)
    predicted = ops.convert_to_numpy(trained_model(result.x_adv)).argmax(1)
    np.testing.assert_array_equal(result.success, predicted == target)
    assert result.success_rate > 0.95


def test_what_is_misclassified_stays_as_it_is(trained_model, embedded_data):
    x, y = (values[:64] for values in embedded_data[1])
    wrong = ops.convert_to_numpy(trained_model(x)).argmax(1) != y
    attack = kr.attacks.CarliniWagnerL2(learning_rate=0.1, num_steps=20, binary_search_steps=2)
    result = attack.run(trained_model, x, y)
    assert wrong.any()
    np.testing.assert_array_equal(result.x_adv[wrong], x[wrong])
    assert result.success[wrong].all()


def reference(kernel, x, y, const, rate, num_steps):
    """The nearest fooling iterate of Adam for one `c`, in float64; linear logits, one image."""
    w_0 = np.arctanh((2 * x - 1) * 0.999999)
    w, m, v, best = np.zeros_like(x), 0.0, 0.0, None
    for t in range(1, num_steps + 1):
        image = (np.tanh(w_0 + w) + 1) / 2
        z = image @ kernel
        others = np.where(np.arange(len(z)) == y, -np.inf, z)
        j = others.argmax()
        if z[j] > z[y] and (best is None or ((image - x) ** 2).sum() < ((best - x) ** 2).sum()):
            best = image
        pull = const * (kernel[:, y] - kernel[:, j]) if z[y] > z[j] else 0.0
        gradient = (2 * (image - x) + pull) * (1 - np.tanh(w_0 + w) ** 2) / 2
        m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
        step = m / (1 - 0.9**t) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
        w = w - rate * step
    return best


def test_the_iterates_are_those_of_the_reference():
    rng = np.random.default_rng(3)
    kernel = rng.normal(size=(12, 4))
    model = keras.Sequential([keras.Input((12,)), keras.layers.Dense(4)])
    model.set_weights([kernel.astype("float32"), np.zeros(4, "float32")])
    x = rng.uniform(0.1, 0.9, (6, 12)).astype("float32")
    y = (x @ kernel).argmax(1)
    # Fewer steps than it takes to look whether the search has stalled.
    attack = kr.attacks.CarliniWagnerL2(
        learning_rate=0.1, num_steps=9, initial_const=10.0, binary_search_steps=1
    )
    result = attack.run(model, x, y)
    assert result.success.any()
    for index in range(len(x)):
        best = reference(kernel, x[index].astype("float64"), y[index], 10.0, 0.1, 9)
        assert (best is not None) == result.success[index]
        if best is not None:
            np.testing.assert_allclose(result.x_adv[index], best, atol=1e-4)
    np.testing.assert_array_equal(result.num_gradients, 9)


def test_the_search_for_c_needs_no_good_start(trained_model, embedded_data):
    x, y = (values[:32] for values in embedded_data[1])
    found = [
        kr.attacks.CarliniWagnerL2(
            learning_rate=0.05, num_steps=100, initial_const=const, binary_search_steps=9
        ).run(trained_model, x, y)
        for const in (1e-3, 1e3)
    ]
    assert found[0].success.all()
    assert found[1].success.all()
    medians = [np.median(result.norms["l2"]) for result in found]
    np.testing.assert_allclose(medians[0], medians[1], rtol=0.1)


@pytest.mark.parametrize(
    "arguments",
    [
        {"confidence": -1.0},
        {"learning_rate": 0.0},
        {"num_steps": 0},
        {"initial_const": 0.0},
        {"binary_search_steps": 0},
    ],
    ids=str,
)
def test_bad_arguments(arguments):
    (name,) = arguments
    with pytest.raises(ValueError, match=f"`{name}`.*Received: {name}="):
        kr.attacks.CarliniWagnerL2(**arguments)
