"""Losses compute in float32 under policies of half precision.

The expected values are computed in float64 from the rounded features or logits of the network.
"""

import pathlib
import runpy

import keras
import numpy as np
import pytest
from keras import ops

import keras_robust as kr

pytestmark = pytest.mark.slow_on_jax

REFERENCE = runpy.run_path(str(pathlib.Path(__file__).parents[1] / "ops" / "reference_wnll.py"))
RNG = np.random.default_rng(0)
Y = np.arange(24) % 3
X = np.clip(RNG.uniform(0.3, 0.7, (3, 6))[Y] + 0.15 * RNG.normal(size=(24, 6)), 0, 1)
X_ADV = np.clip(X + RNG.uniform(-0.1, 0.1, X.shape), 0, 1).astype("float32")
X = X.astype("float32")
policies = pytest.mark.parametrize(
    ("policy", "is_global"),
    [("mixed_float16", True), ("mixed_float16", False), ("mixed_bfloat16", True),
     ("mixed_bfloat16", False)],
)  # fmt: skip


def make_model(policy, is_global, make_last, width=16):
    """Returns two layers with the policy, set globally or per layer, and weights in [-1, 1]."""
    keras.utils.set_random_seed(1)
    if is_global:
        keras.config.set_dtype_policy(policy)  # Reset after each test.
    own = {} if is_global else {"dtype": keras.DTypePolicy(policy)}
    hidden = keras.layers.Dense(width, "tanh", **own)
    model = keras.Sequential([keras.Input((6,)), hidden, make_last(**own)])
    rng = np.random.default_rng(2)
    for layer in model.layers:
        for weight in layer.trainable_weights:
            weight.assign(rng.uniform(-1, 1, weight.shape))
    assert hidden.compute_dtype == policy.removeprefix("mixed_")
    return model


def array(x):
    return ops.convert_to_numpy(x).astype("float64")


def first_loss(loss, model, x=X):
    """Returns the loss of one step of `fit` on the batch. Eager mode keeps all rounding."""
    robust = kr.RobustModel(model)
    robust.compile(keras.optimizers.SGD(0.0), loss, run_eagerly=True)
    return robust.fit(x, Y, batch_size=24, shuffle=False, verbose=0).history["loss"][0]


def cross_entropy(z):
    z = z - z.max(axis=1, keepdims=True)
    return np.log(np.exp(z).sum(axis=1)) - z[np.arange(len(z)), Y]


def dense(**arguments):
    return keras.layers.Dense(3, **arguments)


@policies
def test_fisher_information(policy, is_global):
    model = make_model(policy, is_global, dense)
    z = array(model(X, training=True))
    trace = np.exp(z).sum(axis=1) * np.exp(-z).sum(axis=1)
    found = first_loss(kr.losses.FisherInformation(weight=0.5), model)
    np.testing.assert_allclose(found, np.mean(0.5 * cross_entropy(z) + 0.5 * trace), rtol=1e-5)


@policies
@pytest.mark.parametrize(("order", "ratio"), [(1, "batch"), (2, "batch"), (2, "sample")])
def test_latent_disparity(policy, is_global, order, ratio):
    model = make_model(policy, is_global, dense)
    clean, moved = (array(model.layers[0](x)) for x in (X, X_ADV))
    axis = None if ratio == "batch" else 1
    norms = [(abs(v) ** order).sum(axis) ** (1 / order) for v in (clean - moved, clean)]
    loss = kr.losses.LatentDisparity(None, weight=1.0, order=order, ratio=ratio)
    found = first_loss(loss, model, (X, X_ADV))
    np.testing.assert_allclose(found, np.mean(norms[0] / norms[1]), rtol=1e-5)


@policies
def test_max_mahalanobis(policy, is_global):
    model = make_model(
        policy, is_global, lambda **own: kr.layers.MaxMahalanobisClassifier(3, 2.0, **own)
    )
    features, centers = array(model.layers[0](X)), array(model.layers[1].centers)
    expected = ((features[:, None] - centers) ** 2).sum(axis=2)
    np.testing.assert_allclose(array(model(X)), -expected, rtol=1e-5, atol=1e-5)
    found = first_loss(kr.losses.MaxMahalanobis(), model)
    np.testing.assert_allclose(found, expected[np.arange(24), Y].mean(), rtol=1e-5)


@policies
@pytest.mark.parametrize("norm", ["frobenius", "spectral"])
def test_the_angular_penalty_of_a_tanh_classifier(policy, is_global, norm):
    model = make_model(
        policy, is_global, lambda **own: kr.layers.TanhClassifier(3, norm=norm, **own)
    )
    rows = array(model.layers[1].kernel).T
    gram = 0.015 * np.eye(3) - 0.005
    penalty = 100 * np.linalg.norm(rows @ rows.T - gram, {"frobenius": "fro", "spectral": 2}[norm])
    np.testing.assert_allclose(float(model.losses[0]), penalty, rtol=1e-5)
    model.compile(
        keras.optimizers.SGD(0.0), keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    )
    found = model.fit(X, Y, batch_size=24, verbose=0).history["loss"][0]
    expected = cross_entropy(array(model(X, training=True))).mean() + penalty
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@policies
@pytest.mark.parametrize("units", [None, 8])
def test_graph_interpolation(policy, is_global, units):
    def make_head(**own):
        return kr.layers.WNLLHead(3, units=units, num_neighbors=8, template_size=18, **own)

    model = make_model(policy, is_global, make_head)
    hidden, head = model.layers
    features = hidden(X)
    features = array(features if units is None else head.buffer(features))
    weights = REFERENCE["weights"](features, 8, 4, "gaussian")
    u = np.zeros((24, 3))
    for fold in range(3):
        is_hidden = np.arange(24) // 3 % 3 == fold  # By the rank within its class.
        order = np.argsort(~is_hidden, kind="stable")
        size = int(is_hidden.sum())
        values = np.eye(3)[Y[~is_hidden]]
        share = size / (24 - size)
        u[is_hidden] = REFERENCE["solve"](weights[np.ix_(order, order)], values, size, share)
    u = np.maximum(u, 0) + 1e-6
    expected = cross_entropy(np.log(u / u.sum(axis=1, keepdims=True)))
    # The logits of the linear branch are rounded, too.
    linear = head.linear(ops.cast(features, head.compute_dtype))
    expected = expected + 0.1 * cross_entropy(array(linear))
    found = first_loss(kr.losses.GraphInterpolation(linear_weight=0.1), model)
    np.testing.assert_allclose(found, expected.mean(), rtol=1e-4)


@policies
def test_the_parseval_step_in_fit(policy, is_global):
    constraint = kr.constraints.ParsevalTightness(0.1, 1.0)
    model = make_model(policy, is_global, lambda **own: dense(kernel_constraint=constraint, **own))
    rows = array(model.layers[1].kernel).T
    assert keras.backend.standardize_dtype(model.layers[1].kernel.dtype) == "float32"
    first_loss(kr.losses.FisherInformation(), model)
    expected = 1.1 * rows - 0.1 * rows @ rows.T @ rows
    np.testing.assert_allclose(array(model.layers[1].kernel).T, expected, rtol=1e-5, atol=1e-5)
