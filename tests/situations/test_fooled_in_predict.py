"""Examples that count as fooled are misclassified by `model.predict` at every batch size."""

import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_robust as kr
from keras_robust.model.arrays import as_arrays

NUM_IMAGES = 200
# Attacks whose images are at the boundary, and others. Few steps suffice for this test.
ATTACKS = {
    "FAB": kr.attacks.FAB(num_steps=8, num_targets=2),
    "FAB-l2": kr.attacks.FAB(norm="l2", num_steps=8, num_targets=2, num_restarts=2),
    "FAB-ball": kr.attacks.FAB(0.03, num_steps=8, num_targets=2),
    "DeepFool": kr.attacks.DeepFool(),
    "DeepFool-linf": kr.attacks.DeepFool(norm="linf", overshoot=0.0),
    "CarliniWagnerL2": kr.attacks.CarliniWagnerL2(
        num_steps=40, binary_search_steps=3, learning_rate=0.05
    ),
    "Square": kr.attacks.Square(0.05, num_queries=60),
    "HopSkipJump": kr.attacks.HopSkipJump(num_queries=300),
    "HopSkipJump-linf": kr.attacks.HopSkipJump(norm="linf", num_queries=300),
    "APGD": kr.attacks.APGD(0.03, num_steps=12),
    "PGD": kr.attacks.PGD(0.03, num_steps=8),
    "MultiTargeted": kr.attacks.MultiTargeted(0.03, num_steps=4, num_targets=3),
    "GaussianNoise": kr.attacks.GaussianNoise(0.2),
    "Ensemble": kr.attacks.Ensemble([kr.attacks.FGSM(0.02), kr.attacks.FAB(num_steps=5)]),
}
# XLA takes long to compile the others.
QUICK_ON_JAX = ("FAB", "Square", "PGD")


def classifier(dtype=None, end=None):
    """Returns two layers with long sums, whose order differs in a batch of one."""
    stack = [keras.Input((28, 28, 1)), layers.Flatten(dtype=dtype)]
    stack += [layers.Dense(64, "relu", dtype=dtype), layers.Dense(10, dtype=dtype)]
    return keras.Sequential(stack + ([] if end is None else [end]))


@pytest.fixture(scope="module")
def images():
    return as_arrays(kr.datasets.load("fashion_mnist_subset", "test").take(NUM_IMAGES))


@pytest.fixture(scope="module")
def weights():
    data = kr.datasets.load("fashion_mnist_subset", "train").take(2000).batch(64)
    keras.utils.set_random_seed(0)
    model = classifier()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(2e-3), loss)
    model.fit(data, epochs=2, verbose=0)
    return model.get_weights()


def num_correct(model, x, y):
    """Returns how many images `predict` classifies correctly at any of several batch sizes."""
    if not len(x):
        return 0
    correct = [model.predict(x, b, verbose=0).argmax(axis=1) == y for b in (1, 32, len(x))]
    return int(np.any(correct, axis=0).sum())


def is_slow(name):
    return keras.backend.backend() == "jax" and name not in QUICK_ON_JAX


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] if is_slow(n) else []) for n in ATTACKS]
)
def test_fooled_images_of_every_attack(name, weights, images):
    model, (x, y) = classifier(), images
    model.set_weights(weights)
    result = ATTACKS[name].run(model, x, y, seed=0)
    fooled = result.success
    assert fooled.sum() > 0.1 * NUM_IMAGES
    assert num_correct(model, result.x_adv[fooled], y[fooled]) == 0


@pytest.mark.slow_on_jax
@pytest.mark.parametrize("norm", ["linf", pytest.param("l2", marks=pytest.mark.slow)])
def test_smallest_perturbations_are_hardly_larger_than_necessary(norm, weights, images):
    # Slightly nearer images, by 0.2% of the distance, are on the other side of the boundary.
    model, (x, y) = classifier(), images
    model.set_weights(weights)
    result = kr.attacks.FAB(norm=norm, num_steps=8, num_targets=2).run(model, x, y, seed=0)
    correct = model.predict(x, verbose=0).argmax(axis=1) == y
    assert result.success.all()
    nearer = (x + (1 - 2e-3) * (result.x_adv - x))[correct]
    assert (model.predict(nearer, verbose=0).argmax(axis=1) == y[correct]).mean() > 0.9


@pytest.mark.slow
@pytest.mark.parametrize("attack", [ATTACKS["FAB"], ATTACKS["DeepFool"], ATTACKS["PGD"]], ids=repr)
@pytest.mark.parametrize("dtype", ["mixed_float16", "bfloat16"])
def test_models_of_half_precision(attack, dtype, weights, images):
    model, (x, y) = classifier(dtype), images
    model.set_weights(weights)
    result = attack.run(model, x, y, seed=0)
    assert result.success.sum() > 0.4 * NUM_IMAGES
    assert num_correct(model, result.x_adv[result.success], y[result.success]) == 0


@pytest.mark.slow_on_jax
def test_images_of_half_precision(weights, images):
    model, (x, y) = classifier(), (images[0].astype("float16"), images[1])
    model.set_weights(weights)
    result = ATTACKS["FAB"].run(model, x, y, seed=0)
    assert result.x_adv.dtype == "float16"
    assert result.success.all()
    assert num_correct(model, result.x_adv, y) == 0


ENDS = {
    "softmax": (lambda: layers.Softmax(), 1.0),
    "equal probabilities": (lambda: layers.Softmax(), 1e-12),
    "sigmoids of 1": (lambda: layers.Activation("sigmoid"), 8.0),
}


@pytest.mark.parametrize(("end", "scale"), ENDS.values(), ids=ENDS)
def test_tied_probabilities_do_not_count_as_fooled(end, scale, weights, images):
    # If two probabilities are equal after rounding, `predict` does not see the difference of their
    # logits.
    model, (x, y) = classifier(end=end()), images
    model.set_weights([*weights[:-2], *(scale * value for value in weights[-2:])])
    correct = model.predict(x, verbose=0).argmax(axis=1) == y
    x, y = x[correct], y[correct]
    result = kr.attacks.PGD(0.05, num_steps=5, from_logits=False).run(model, x, y, seed=0)
    if scale == 1.0:
        assert result.success.mean() > 0.2
    assert num_correct(model, result.x_adv[result.success], y[result.success]) == 0


def test_tied_scores_do_not_count_as_fooled():
    # Both scores are the same sum, so only rounding may decide which is larger.
    kernel = np.random.default_rng(0).normal(size=(50, 1)).astype("float32")

    def model(x):
        score = ops.matmul(x, kernel)
        return ops.concatenate([score, score], axis=1)

    x = np.random.default_rng(1).random((8, 50), "float32")
    for attack in (kr.attacks.PGD(0.3, num_steps=2), kr.attacks.Square(0.3, num_queries=3)):
        assert not attack.run(model, x, np.arange(8) % 2, seed=0).success.any()


@pytest.mark.parametrize("scale", [2.0**-40, 2.0**40])
def test_results_do_not_depend_on_the_scale_of_the_logits(scale, weights, images):
    # A power of 2 does not change the rounding.
    model, scaled, (x, y) = classifier(), classifier(), images
    model.set_weights(weights)
    scaled.set_weights([*weights[:-2], *(scale * value for value in weights[-2:])])
    attack = kr.attacks.PGD(0.03, num_steps=8, loss="margin")
    found, expected = attack.run(scaled, x, y, seed=0), attack.run(model, x, y, seed=0)
    np.testing.assert_array_equal(found.success, expected.success)
    assert num_correct(scaled, found.x_adv[found.success], y[found.success]) == 0
