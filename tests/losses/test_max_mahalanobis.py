"""The Max-Mahalanobis head and loss agree with NumPy."""

import keras
import numpy as np
import pytest

import keras_robust as kr

pytestmark = pytest.mark.gpu

RNG = np.random.default_rng(0)
Z = RNG.normal(size=(9, 5)).astype("float32")
Y = np.arange(9) % 4


def centers_of(num_classes, features, scale=10.0, **arguments):
    layer = kr.layers.MaxMahalanobisClassifier(num_classes, scale, **arguments)
    layer.build((None, features))
    return layer, keras.ops.convert_to_numpy(layer.centers).astype("float64")


def squared_distances(z, centers):
    return ((z[:, None].astype("float64") - centers) ** 2).sum(2)


@pytest.mark.parametrize(
    ("num_classes", "features", "scale"),
    [(2, 1, 1.0), (4, 3, 10.0), (10, 9, 10.0), (10, 64, 2.5), (100, 99, 10.0)],
)
def test_centers_are_a_simplex(num_classes, features, scale):
    layer, centers = centers_of(num_classes, features, scale)
    assert centers.shape == (num_classes, features)
    gram = centers @ centers.T / scale**2
    expected = np.full((num_classes, num_classes), -1 / (num_classes - 1))
    np.fill_diagonal(expected, 1)
    np.testing.assert_allclose(gram, expected, atol=1e-5)
    np.testing.assert_allclose(centers.sum(0), 0, atol=1e-4 * scale)
    np.testing.assert_array_equal(centers_of(num_classes, features, scale)[1], centers)
    assert layer.trainable_weights == []


def test_three_centers_in_two_dimensions():
    expected = [[2, 0], [-1, np.sqrt(3)], [-1, -np.sqrt(3)]]
    np.testing.assert_allclose(centers_of(3, 2, 2.0)[1], expected, atol=1e-6)


def test_logits_and_loss():
    layer, centers = centers_of(4, 5, 3.0)
    distances = squared_distances(Z, centers)
    logits = layer(Z)
    np.testing.assert_allclose(logits, -distances, rtol=1e-5, atol=1e-4)
    assert (np.asarray(logits).argmax(1) == distances.argmin(1)).all()
    to_true_center = distances[np.arange(9), Y]
    for labels in (Y, Y[:, None], np.eye(4)[Y]):
        loss = kr.losses.MaxMahalanobis(reduction=None)
        np.testing.assert_allclose(loss(labels, logits), to_true_center, rtol=1e-5)
    weight = np.linspace(0, 2, 9).astype("float32")
    found = kr.losses.MaxMahalanobis()(Y, logits, sample_weight=weight)
    assert float(found) == pytest.approx((to_true_center * weight).mean(), rel=1e-5)
    found = kr.losses.MaxMahalanobis()(Y, layer(centers[Y].astype("float32")))
    assert float(found) == pytest.approx(0, abs=1e-4)


def make_model(dtype=None):
    keras.utils.set_random_seed(1)
    return keras.Sequential(
        [
            keras.Input((5,)),
            keras.layers.Dense(6, dtype=dtype),
            kr.layers.MaxMahalanobisClassifier(4, scale=3.0, dtype=dtype),
        ]
    )


@pytest.mark.usefixtures("networks_in_float32")
def test_gradient_agrees_with_finite_differences():
    model = make_model()
    kernel, _, centers = model.get_weights()

    def reference(weights):
        return squared_distances(Z.astype("float64") @ weights, centers)[np.arange(9), Y].mean()

    slopes = np.zeros(kernel.shape)
    for index in np.ndindex(kernel.shape):
        step = np.zeros(kernel.shape)
        step[index] = 1e-5
        slopes[index] = (reference(kernel + step) - reference(kernel - step)) / 2e-5
    model.compile(keras.optimizers.SGD(0.1), kr.losses.MaxMahalanobis())
    model.fit(Z, Y, batch_size=9, verbose=0)
    np.testing.assert_allclose(
        (kernel - model.get_weights()[0]) / 0.1, slopes, rtol=1e-3, atol=1e-4
    )
    np.testing.assert_array_equal(model.get_weights()[2], centers)


def test_adversarial_training_with_it():
    # The attack maximizes the cross-entropy. The loss on its images is the distance to the centres.
    model = make_model()
    attack = kr.attacks.IFGSM(0.1, num_steps=3, bounds=(-4.0, 4.0))
    kernel, bias, centers = (w.astype("float64") for w in model.get_weights())

    x_adv = Z.astype("float64")
    for _ in range(3):
        features = x_adv @ kernel + bias
        logits = -squared_distances(features, centers)
        p = np.exp(logits - logits.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        # d CE / d z = sum_j (p_j - [j = y]) 2 mu_j.
        gradient = 2 * (p - np.eye(4)[Y]) @ centers @ kernel.T
        x_adv = np.clip(x_adv + 0.25 / 3 * np.sign(gradient), Z - 0.1, Z + 0.1)
    expected = squared_distances(x_adv @ kernel + bias, centers)[np.arange(9), Y].mean()

    robust = kr.RobustModel(model)
    loss = kr.losses.AdversarialTraining(attack, loss=kr.losses.MaxMahalanobis())
    robust.compile(keras.optimizers.SGD(0.0), loss, run_eagerly=True)
    found = robust.fit(Z, Y, batch_size=9, verbose=0).history["loss"][0]
    assert found == pytest.approx(expected, rel=1e-4)
    clean = squared_distances(Z @ kernel + bias, centers)[np.arange(9), Y].mean()
    assert abs(expected - clean) > 0.05
    value = robust.evaluate(Z, Y, batch_size=9, verbose=0)
    assert value == pytest.approx(clean, rel=1e-4)


def test_mixed_precision():
    model = make_model("mixed_float16")
    x = 100 * Z
    features = x @ model.get_weights()[0].astype("float64")
    assert (features**2).sum(1).max() > 65504  # Overflows in float16.
    assert keras.backend.standardize_dtype(model(x).dtype) == "float32"
    np.testing.assert_allclose(
        model(x), -squared_distances(features, model.get_weights()[2]), rtol=5e-3
    )
    model.compile(keras.optimizers.SGD(1e-6), kr.losses.MaxMahalanobis())
    assert np.isfinite(model.fit(Z, Y, verbose=0).history["loss"]).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: kr.layers.MaxMahalanobisClassifier(1), "`num_classes` must be at least 2"),
        (lambda: kr.layers.MaxMahalanobisClassifier(3, scale=0.0), "`scale`.*scale=0.0"),
        (lambda: centers_of(4, 2), "at most one more than the number of features"),
        (lambda: kr.layers.MaxMahalanobisClassifier(3)(np.zeros((2, 3, 3))), "ndim=2"),
        (lambda: kr.losses.MaxMahalanobis(reduction="max"), "reduction"),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()
