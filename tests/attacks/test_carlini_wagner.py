"""Carlini and Wagner's attack agrees with closed forms and a float64 reference."""

import keras
import numpy as np
import pytest
from keras import ops

import keras_robust as kr
from keras_robust import backend
from keras_robust.model.classifier import Classifier

pytestmark = pytest.mark.slow_on_jax

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


def test_targeted_attack_reaches_the_target(trained_model, embedded_data):
    x, y = (values[:32] for values in embedded_data[1])
    target = (y + 1) % 10
    attack = kr.attacks.CarliniWagnerL2(
        learning_rate=0.1, num_steps=100, initial_const=1.0, binary_search_steps=3, targeted=True
    )
    result = attack.run(trained_model, x, target)
    predicted = ops.convert_to_numpy(trained_model(result.x_adv)).argmax(1)
    np.testing.assert_array_equal(result.success, predicted == target)
    assert result.success_rate > 0.95


def test_misclassified_images_are_not_changed(trained_model, embedded_data):
    x, y = (values[:64] for values in embedded_data[1])
    wrong = ops.convert_to_numpy(trained_model(x)).argmax(1) != y
    attack = kr.attacks.CarliniWagnerL2(learning_rate=0.1, num_steps=20, binary_search_steps=2)
    result = attack.run(trained_model, x, y)
    assert wrong.any()
    np.testing.assert_array_equal(result.x_adv[wrong], x[wrong])
    assert result.success[wrong].all()


def smallest_share(is_fooling, x, image):
    """Bisects the segment from `x` to `image` 8 times, and returns the nearest fooling point."""
    near, far = 0.0, 1.0
    for _ in range(8):
        middle = (near + far) / 2
        if is_fooling(x + middle * (image - x)):
            far = middle
        else:
            near = middle
    return x + far * (image - x)


def reference(kernel, x, y, num_searches, num_steps, rate, const=None):
    """Attacks one image of linear logits in float64. Returns it and the number of gradients."""

    def margin_and_gradient(image):
        z = image @ kernel
        other = max((k for k in range(len(z)) if k != y), key=lambda k: z[k])
        return z[other] - z[y], kernel[:, other] - kernel[:, y]

    low, high, best, num_gradients = None, None, None, 0
    for _ in range(num_searches):
        w = np.arctanh(np.clip(2 * x - 1, -0.999, 0.999))
        m, v, losses, found = np.zeros_like(x), np.zeros_like(x), [], False
        distance_before = None
        for t in range(1, num_steps + 1):
            image = (np.tanh(w) + 1) / 2
            margin, slope = margin_and_gradient(image)
            if const is None:
                const = 20 * -margin / (slope @ slope)
            distance = np.linalg.norm(image - x)
            losses.append(distance**2 + const * max(-margin, 0))
            if margin > 0:
                found = True
                if best is None or distance < np.linalg.norm(best - x):
                    best = image
            gradient = (2 * (image - x) - const * slope * (margin < 0)) * (1 - np.tanh(w) ** 2) / 2
            m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
            w = w - rate * m / (1 - 0.9**t) / np.sqrt(v / (1 - 0.999**t))
            num_gradients += 1
            if t % 10 == 0 and t < num_steps and best is not None:
                shortest = np.linalg.norm(best - x)
                stalled = t > 10 and min(losses) >= 0.995 * min(losses[:-10])
                if stalled and distance_before and shortest >= 0.995 * distance_before:
                    break
                distance_before = shortest
            elif t % 10 == 0:
                distance_before = None
            if t % 10 == 0 and best is not None:
                distance_before = np.linalg.norm(best - x)
        if found:
            high = const if high is None else min(high, const)
        else:
            low = const if low is None else max(low, const)
        if high is None:
            const = 10 * const
        elif low is None:
            const = high / 4
        else:
            const = np.sqrt(low * high)
    if best is not None:
        best = smallest_share(lambda image: margin_and_gradient(image)[0] > 0, x, best)
    return best, num_gradients


def linear_problem(num_images=8):
    rng = np.random.default_rng(3)
    kernel = rng.normal(size=(12, 4)).astype("float32")
    model = keras.Sequential([keras.Input((12,)), keras.layers.Dense(4)])
    model.set_weights([kernel, np.zeros(4, "float32")])
    x = rng.uniform(-0.1, 1.1, (num_images, 12)).clip(0, 1).astype("float32")
    return model, kernel.astype("float64"), x, (x @ kernel).argmax(1)


@pytest.mark.parametrize(
    ("num_searches", "num_steps", "const"), [(1, 9, 10.0), (1, 25, None), (4, 35, None)]
)
def test_run_and_perturb_agree_with_the_reference(num_searches, num_steps, const):
    model, kernel, x, y = linear_problem()
    attack = kr.attacks.CarliniWagnerL2(
        learning_rate=0.1,
        num_steps=num_steps,
        initial_const=const,
        binary_search_steps=num_searches,
    )
    result = attack.run(model, x, y)
    perturb = Classifier(model).compiled(attack.key, lambda m, *args: attack.perturb(m, *args))
    in_graph = ops.convert_to_numpy(perturb(x, y, backend.make_seed(0)))
    assert result.success.any()
    for index in range(len(x)):
        best, num_gradients = reference(
            kernel, x[index].astype("float64"), y[index], num_searches, num_steps, 0.1, const
        )
        assert (best is not None) == result.success[index]
        assert num_gradients == result.num_gradients[index]
        if best is not None:
            np.testing.assert_allclose(result.x_adv[index], best, atol=2e-3)
            np.testing.assert_allclose(in_graph[index], best, atol=2e-3)
    if num_searches > 1:
        assert (result.num_gradients < num_searches * num_steps).any()


@pytest.mark.slow
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
