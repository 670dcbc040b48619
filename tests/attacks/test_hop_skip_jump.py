"""HopSkipJump agrees with closed forms, from predicted classes and within its queries."""

import keras
import numpy as np
import pytest
from keras import ops

import keras_robust as kr
from keras_robust import backend
from keras_robust.attacks.boundary_search import BoundarySearch
from keras_robust.attacks.journal import Journal
from keras_robust.attacks.problem import Problem
from keras_robust.model.classifier import Classifier

pytestmark = pytest.mark.slow_on_jax

DUAL = {"l2": 2, "linf": 1}


def linear(num_classes, size=20):
    """Returns a linear classifier, 12 images, their classes, and gaps and slopes to the others."""
    rng = np.random.default_rng(num_classes)
    kernel = rng.normal(size=(size, num_classes)).astype("float32")
    model = keras.Sequential([keras.Input((size,)), keras.layers.Dense(num_classes)])
    model.set_weights([kernel, np.zeros(num_classes, "float32")])
    x = rng.uniform(-1, 1, (12, size)).astype("float32")
    z = x.astype("float64") @ kernel
    y = z.argmax(axis=1)
    gaps = z[np.arange(12), y][:, None] - z
    slopes = kernel.T[y][:, None] - kernel.T[None]
    return model, x, y, gaps, slopes


def distances(gaps, slopes, norm):
    """Returns the distances to the boundary of each class, `gap / ||slope||_q`, or infinity."""
    lengths = np.linalg.norm(slopes, DUAL[norm], axis=2)
    return np.where(lengths > 0, gaps / np.maximum(lengths, 1e-9), np.inf)


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_finds_the_distance_to_a_hyperplane(norm):
    model, x, y, *boundary = linear(2)
    expected = distances(*boundary, norm).min(axis=1)
    attack = kr.attacks.HopSkipJump(norm=norm, num_queries=5000, bounds=(-20, 20))
    result = attack.run(model, x, y, seed=0)
    assert result.success.all()
    ratio = result.norms[norm] / expected
    assert ratio.min() >= 1 - 1e-5
    assert ratio.max() < 1.05
    few = attack.replace(num_queries=500).run(model, x, y, seed=0).norms[norm] / expected
    assert np.median(few) > np.median(ratio) + 0.01


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_finds_the_nearest_of_several_classes(norm):
    # The attack follows the first boundary it finds, which need not be the nearest.
    model, x, y, *boundary = linear(5)
    every = distances(*boundary, norm)
    attack = kr.attacks.HopSkipJump(norm=norm, num_queries=5000, bounds=(-20, 20))
    result = attack.run(model, x, y, seed=0)
    ratio = result.norms[norm] / every.min(axis=1)
    assert ratio.min() >= 1 - 1e-5
    assert np.median(ratio) < 1.05


@pytest.mark.slow
def test_finds_the_distance_to_a_target():
    # With only two classes, the region of the target is a half-space.
    model, x, y, *boundary = linear(2)
    expected = distances(*boundary, "l2").min(axis=1)
    attack = kr.attacks.HopSkipJump(num_queries=3000, targeted=True, bounds=(-20, 20))
    result = attack.run(model, x, 1 - y, seed=0)
    assert result.success.all()
    assert (result.norms["l2"] / expected).min() >= 1 - 1e-5
    assert (result.norms["l2"] / expected).max() < 1.1


def test_targets_are_found_among_the_images_of_the_batch():
    # Noise has a mean near 1/2 and is in class 2. Other targets start from images of the batch.
    def model(x):
        mean = ops.mean(x, axis=1, keepdims=True)
        return -ops.abs(mean - ops.convert_to_tensor([0.0, 0.25, 0.5, 0.75, 1.0]))

    rng = np.random.default_rng(0)
    y = np.arange(20) % 5
    x = np.clip(y[:, None] / 4 + rng.uniform(-0.1, 0.1, (20, 30)), 0, 1).astype("float32")
    target = (y + rng.integers(1, 5, 20)) % 5
    attack = kr.attacks.HopSkipJump(num_queries=400, targeted=True)
    result = attack.run(model, x, target, seed=0)
    assert result.success.all()
    np.testing.assert_array_equal(ops.convert_to_numpy(model(result.x_adv)).argmax(1), target)
    # A batch of one image can only start from noise.
    alone = attack.run(model, x[:1], [4], seed=0)
    assert not alone.success.any()
    np.testing.assert_array_equal(alone.x_adv, x[:1])


def test_projections_are_the_nearest_points():
    rng = np.random.default_rng(0)
    x, far = (rng.random((6, 3, 3, 1), "float32") for _ in range(2))
    share = rng.random(6, "float32")
    delta = (far - x).reshape(6, -1).astype("float64")
    radius = share * np.abs(delta).max(axis=1)
    expected = {
        "l2": share[:, None] * delta,
        "linf": np.clip(delta, -radius[:, None], radius[:, None]),
    }
    for norm, nearest in expected.items():
        search = BoundarySearch(None, ops.convert_to_tensor(x), norm, (0.0, 1.0))
        found = search.between(ops.convert_to_tensor(far), ops.convert_to_tensor(share))
        moved = (ops.convert_to_numpy(found) - x).reshape(6, -1)
        np.testing.assert_allclose(moved, nearest, atol=1e-6)


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_estimates_the_normal_of_a_hyperplane(norm):
    # With 4,000 directions in 20 dimensions, the cosine of the angle is about 0.996.
    model, x, y, gaps, slopes = linear(2)
    rows, other = np.arange(12), 1 - y
    normal = -slopes[rows, other]
    step = gaps[rows, other] / np.square(normal).sum(axis=1)
    attack = kr.attacks.HopSkipJump(norm=norm, bounds=(-20, 20))

    def estimate(classifier, x, y, z):
        problem = Problem(attack, classifier, ops.cast(y, "int32"), backend.make_seed(0))
        search = BoundarySearch(problem, x, norm, attack.bounds)
        count = ops.convert_to_tensor(4000, "int32")
        return search.normal(z, search.distance(z - x), count, backend.make_seed(1))[0]

    at_boundary = (x + step[:, None] * normal).astype("float32")
    compiled = Classifier(model).compiled(("estimate", norm), estimate)
    found = ops.convert_to_numpy(compiled(x, y, at_boundary))
    lengths = np.linalg.norm(found, axis=1) * np.linalg.norm(normal, axis=1)
    assert ((found * normal).sum(axis=1) / lengths).min() > 0.99


KERNEL = np.random.default_rng(2).integers(-3, 4, (16, 2)).astype("float32")
IMAGES = np.random.default_rng(3).random((10, 4, 4, 1), "float32")


def never_tied(x, module=np):
    """Computes two logits that never nearly tie: they are half-integers."""
    flat = module.reshape(x, (-1, 16))
    levels = module.round(flat * 64) - 32
    score = module.matmul(levels, KERNEL[:, :1]) + 0.5
    return module.concatenate([-score, score], axis=1)


CLASSES = never_tied(IMAGES).argmax(axis=1)


@pytest.mark.slow
def test_only_uses_predicted_classes():
    attack = kr.attacks.HopSkipJump(num_queries=150)
    boxes = {
        "logits": kr.BlackBox(never_tied),
        "other logits": kr.BlackBox(lambda x: never_tied(x) ** 3),
        "classes": kr.BlackBox(lambda x: never_tied(x).argmax(axis=1), num_classes=2),
    }
    results = {name: attack.run(box, IMAGES, CLASSES, seed=0) for name, box in boxes.items()}
    one_hot = kr.BlackBox(lambda x: np.eye(2, dtype="float32")[never_tied(x).argmax(axis=1)])
    of_probabilities = attack.replace(from_logits=False)
    results["one-hot"] = of_probabilities.run(one_hot, IMAGES, CLASSES, seed=0)
    expected = results["logits"]
    assert expected.success.all()
    for result in results.values():
        np.testing.assert_array_equal(result.x_adv, expected.x_adv)
        np.testing.assert_array_equal(result.success, expected.success)
        np.testing.assert_array_equal(result.num_evaluations, expected.num_evaluations)


def test_a_black_box_and_a_model_give_similar_results():
    attack = kr.attacks.HopSkipJump(norm="linf", num_queries=300)
    box = attack.run(kr.BlackBox(never_tied), IMAGES, CLASSES, seed=0)
    model = attack.run(lambda x: never_tied(x, ops), IMAGES, CLASSES, seed=0)
    assert box.success.all()
    np.testing.assert_array_equal(box.num_evaluations, model.num_evaluations)
    # Compiled functions round differently, and one different prediction changes the path.
    ratio = model.norms["linf"] / box.norms["linf"]
    assert 0.8 < np.median(ratio) < 1.25


def never(x):
    """Always predicts class 0."""
    return np.zeros(len(x), int)


def seldom(x):
    """Predicts class 1 for dark images only, unlike noise and other images."""
    return (x.reshape(len(x), -1).mean(axis=1) < 0.3).astype(int)


@pytest.mark.parametrize(
    ("function", "epsilon"),
    [
        pytest.param(never, None, marks=pytest.mark.slow),
        pytest.param(seldom, None, marks=pytest.mark.slow),
        (lambda x: never_tied(x).argmax(axis=1), 0.2),
    ],
    ids=["never", "seldom", "often"],
)
def test_queries_are_counted_and_limited(function, epsilon):
    x = np.concatenate([0.4 * IMAGES[:2], IMAGES[2:]])
    y = function(x)
    for num_queries in (3, 27, 67, 170):
        box = kr.BlackBox(function, num_classes=2)
        result = kr.attacks.HopSkipJump(epsilon, num_queries=num_queries).run(box, x, y, seed=0)
        # The checks query 8 images.
        assert box.num_queries == result.num_evaluations.sum() + 8
        assert result.num_evaluations.max() <= num_queries
        np.testing.assert_array_equal(result.num_gradients, 0)
        np.testing.assert_array_equal(result.success, function(result.x_adv) != y)
        if function is never:
            # It gives up after 5 rounds without a first image, and evaluates the original again.
            assert result.num_evaluations.min() >= min(num_queries, 5 * 25 + 1) - 1
    assert function is never or result.num_evaluations.max() > 170 - 42


def test_examples_stop_when_their_image_is_in_the_ball():
    model, x, y, *boundary = linear(2)
    nearest = distances(*boundary, "l2").min(axis=1)
    epsilon = float(np.median(nearest))
    attack = kr.attacks.HopSkipJump(epsilon, num_queries=2000, bounds=(-20, 20))
    result = attack.run(model, x, y, seed=0)
    assert result.norms["l2"].max() <= epsilon * (1 + 1e-6)
    assert not result.success[nearest > epsilon].any()
    assert result.success[nearest < 0.9 * epsilon].all()
    assert result.num_evaluations[result.success].mean() < 1500
    assert (result.num_evaluations[~result.success] > 1900).all()
    np.testing.assert_array_equal(result.x_adv[~result.success], x[~result.success])


def test_misclassified_images_are_not_changed():
    model, x, y, *_ = linear(2)
    y = np.where(np.arange(12) < 4, 1 - y, y)
    result = kr.attacks.HopSkipJump(num_queries=100, bounds=(-20, 20)).run(model, x, y, seed=0)
    assert result.success[:4].all()
    np.testing.assert_array_equal(result.x_adv[:4], x[:4])
    np.testing.assert_array_equal(result.num_evaluations[:4], 25)
    assert (result.norms["l2"][4:] > 0).all()


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_scaling_the_images_scales_the_perturbations(norm):
    # A power of 2 does not change the rounding.
    model, x, y, *_ = linear(3)
    attack = kr.attacks.HopSkipJump(norm=norm, num_queries=150, bounds=(-2, 2))
    expected = attack.run(model, x, y, seed=0)
    for factor in (2.0**-30, 2.0**30):
        other = attack.replace(bounds=(-2 * factor, 2 * factor))
        result = other.run(lambda x, factor=factor: model(x / factor), x * factor, y, seed=0)
        np.testing.assert_array_equal(result.success, expected.success)
        np.testing.assert_allclose(result.norms[norm], factor * expected.norms[norm], rtol=1e-5)


class Noise(keras.layers.Layer):
    """Adds noise, also in inference mode."""

    def build(self, shape):
        self.generator = keras.random.SeedGenerator(0)

    def call(self, x):
        return x + 0.1 * keras.random.normal(ops.shape(x), seed=self.generator)


def test_random_models_and_seeds():
    model, x, y, *boundary = linear(2)
    noisy = keras.Sequential([keras.Input((20,)), Noise(), model])
    attack = kr.attacks.HopSkipJump(num_queries=200, num_samples=4, bounds=(-20, 20))
    first, again, other = (attack.run(noisy, x, y, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first.x_adv, again.x_adv)
    assert (first.x_adv != other.x_adv).any()
    # If images were exactly at the boundary, half of them would be rejected.
    assert first.success.mean() > 0.9
    assert np.median(first.norms["l2"]) < 5 * np.median(distances(*boundary, "l2").min(axis=1))
    assert first.num_evaluations.max() <= 4 * 200
    assert (first.num_evaluations % 4 == 0).all()
    one = attack.replace(num_samples=1).run(noisy, x, y, seed=1)
    assert (one.x_adv != first.x_adv).any()


class Joint(keras.layers.Layer):
    """Subtracts a fraction of the batch's mean from each example."""

    depends_on_batch = True

    def call(self, x):
        return x - 0.3 * ops.mean(x, axis=0, keepdims=True)


def test_models_that_depend_on_the_batch():
    model, x, y, *_ = linear(2)
    joint = keras.Sequential([keras.Input((20,)), Joint(), model])
    y = joint.predict(x, verbose=0).argmax(axis=1)
    attack = kr.attacks.HopSkipJump(num_queries=300, bounds=(-20, 20))
    result = attack.run(joint, x, y, seed=0)
    predicted = joint.predict(result.x_adv, batch_size=12, verbose=0).argmax(axis=1)
    np.testing.assert_array_equal(result.success, predicted != y)


def test_half_precision():
    model, x, y, *_ = linear(2)
    x = x.astype("float16")
    attack = kr.attacks.HopSkipJump(num_queries=1500, bounds=(-20, 20))
    result = attack.run(model, x, y, seed=0)
    predicted = model.predict(result.x_adv, verbose=0).argmax(axis=1)
    assert result.x_adv.dtype == "float16"
    np.testing.assert_array_equal(result.success, predicted != y)
    exact = attack.run(model, x.astype("float32"), y, seed=0).norms["l2"]
    assert (result.norms["l2"] < 1.3 * exact + 0.05).all()


# The first call is that of the checks, 24 look for a first image, one evaluates, and 5 with 20
# images each estimate a normal.
@pytest.mark.parametrize("number", [3, 28, 40], ids=["start", "normal", "step"])
def test_nan_is_an_error_in_every_phase(number):
    calls = []

    def function(x):
        calls.append(len(x))
        scores = never_tied(x)
        if len(calls) == number:
            scores[0] = np.nan
        return scores

    with pytest.raises(ValueError, match="NaN or infinite"):
        kr.attacks.HopSkipJump(num_queries=200).run(kr.BlackBox(function), IMAGES, CLASSES, seed=0)
    assert calls[27] == 20 * len(IMAGES) if number == 28 else calls[number - 1] <= len(IMAGES)


def test_resumes_after_an_interruption():
    saved = {}

    class Store:
        def read(self, name):
            return saved.get(name)

        def write(self, name, arrays):
            saved[name] = {key: value.copy() for key, value in arrays.items()}
            if int(arrays["num_done"]) in interruptions:
                interruptions.remove(int(arrays["num_done"]))
                raise KeyboardInterrupt

    box = kr.BlackBox(never_tied)
    classifier = Classifier(box)
    attack = kr.attacks.HopSkipJump(norm="linf", num_queries=300)
    attack.check(classifier, IMAGES, CLASSES)
    queried_before = box.num_queries
    expected = attack.run_checked(classifier, IMAGES, CLASSES, seed=3)
    needed, interruptions = box.num_queries - queried_before, [1, 6]
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            attack.run_checked(classifier, IMAGES, CLASSES, 3, journal=Journal(store=Store()))
    result = attack.run_checked(classifier, IMAGES, CLASSES, 3, journal=Journal(store=Store()))
    np.testing.assert_array_equal(result.x_adv, expected.x_adv)
    np.testing.assert_array_equal(result.num_evaluations, expected.num_evaluations)
    assert box.num_queries - queried_before == 2 * needed


def test_perturb_in_a_compiled_function():
    model, x, y, *boundary = linear(2)
    attack = kr.attacks.HopSkipJump(num_queries=600, bounds=(-20, 20))
    function = Classifier(model).compiled("p", lambda m, x, y: attack.perturb(m, x, y, 0))
    x_adv = ops.convert_to_numpy(function(x, y))
    assert (model.predict(x_adv, verbose=0).argmax(axis=1) != y).all()
    ratio = np.linalg.norm(x_adv - x, axis=1) / distances(*boundary, "l2").min(axis=1)
    assert ratio.min() >= 1 - 1e-5
    assert np.median(ratio) < 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"norm": "l1"}, "`norm`"),
        ({"num_queries": 2}, "`num_queries`"),
        ({"num_queries": 50.0}, "`num_queries`"),
        ({"epsilon": -1.0}, "`epsilon`"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        kr.attacks.HopSkipJump(**arguments)
