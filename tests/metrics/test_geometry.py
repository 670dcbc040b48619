"""Features in two dimensions, and nearest training images."""

import importlib.util

import keras
import numpy as np
import pytest

import keras_robust as kr
from keras_robust.evaluation import feature_geometry, nearest_images

pytestmark = pytest.mark.slow_on_jax

RNG = np.random.default_rng(0)


@pytest.fixture
def identity():
    """Returns a model of three classes whose features are its input."""
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(3)])
    model.set_weights([RNG.normal(size=(6, 3)), np.zeros(3)])
    return model


@pytest.fixture
def points():
    x = RNG.normal(size=(50, 6)).astype("float32") * [5, 3, 1, 0.5, 0.2, 0.1]
    return x.astype("float32"), RNG.integers(0, 3, 50)


@pytest.mark.parametrize("one_hot", [False, True])
def test_principal_components_agree_with_eigenvectors(identity, points, one_hot):
    x, y = points
    x_adv = x + RNG.normal(size=x.shape).astype("float32")
    geometry = feature_geometry(identity, x, np.eye(3)[y] if one_hot else y, x_adv)
    # Compared with the eigenvectors of the covariance of the clean images.
    centre = x.astype("float64").mean(axis=0)
    values, vectors = np.linalg.eigh(np.cov(x.T.astype("float64")))
    for axis in (0, 1):
        vector = vectors[:, -1 - axis]
        clean, attacked = ((images - centre) @ vector for images in (x, x_adv))
        sign = np.sign(clean[0] * geometry.clean[0, axis])
        np.testing.assert_allclose(geometry.clean[:, axis], sign * clean, atol=1e-4)
        np.testing.assert_allclose(geometry.attacked[:, axis], sign * attacked, atol=1e-4)
    np.testing.assert_allclose(
        geometry.explained_variance, values[:-3:-1] / values.sum(), rtol=1e-4
    )
    np.testing.assert_array_equal(geometry.labels, y)
    for classes, images in ((geometry.clean_classes, x), (geometry.attacked_classes, x_adv)):
        np.testing.assert_array_equal(classes, np.asarray(identity(images)).argmax(axis=1))


def test_an_embedding_keeps_clusters_apart(identity):
    centres = 20 * np.eye(6, dtype="float32")[:2]
    y = np.arange(24) % 2
    x = centres[y] + 0.1 * RNG.normal(size=(24, 6)).astype("float32")
    geometry = feature_geometry(identity, x, y, x + 0.01, method="tsne")
    assert geometry.explained_variance is None
    both = np.concatenate([geometry.clean, geometry.attacked])
    labels = np.concatenate([y, y])
    distances = np.linalg.norm(both[:, None] - both[None], axis=-1)
    np.fill_diagonal(distances, np.inf)
    np.testing.assert_array_equal(labels[distances.argmin(axis=1)], labels)


def test_nearest_images_agree_with_numpy(identity, points):
    x_train, y_train = points
    x = RNG.normal(size=(7, 6)).astype("float32")
    nearest = nearest_images(identity, x, x_train, y_train, k=4, batch_size=3)
    distances = np.linalg.norm(x[:, None].astype("float64") - x_train[None], axis=-1)
    indices = distances.argsort(axis=1)[:, :4]
    np.testing.assert_array_equal(nearest.indices, indices)
    np.testing.assert_allclose(nearest.distances, np.sort(distances, axis=1)[:, :4], rtol=1e-4)
    np.testing.assert_array_equal(nearest.labels, y_train[indices])
    np.testing.assert_array_equal(nearest.images, x_train[indices])
    np.testing.assert_array_equal(nearest.classes, np.asarray(identity(x)).argmax(axis=1))
    np.testing.assert_array_equal(nearest.queries, x)


def test_nearest_images_by_the_features_of_a_layer(points):
    # Values that the layer ignores do not count.
    x_train, y_train = points
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(2, name="two")])
    kernel = np.zeros((6, 2), "float32")
    kernel[[0, 1], [0, 1]] = 1
    model.set_weights([kernel, np.zeros(2)])
    x = x_train[:5] + np.array([0, 0, 9, 9, 9, 9], "float32")
    nearest = nearest_images(model, x, x_train, np.eye(3)[y_train], k=1, layer="two")
    np.testing.assert_array_equal(nearest.indices[:, 0], np.arange(5))
    np.testing.assert_array_equal(nearest.labels[:, 0], y_train[:5])


@pytest.mark.slow
def test_an_attack_leads_away_from_the_training_images_of_the_true_class(
    trained_model, embedded_data
):
    (x_train, y_train), (x, y) = embedded_data
    x, y = x[:60], y[:60]
    x_adv = kr.attacks.PGD(0.1, num_steps=10)(trained_model, x, y, seed=0)
    shares = []
    for images in (x, x_adv):
        nearest = nearest_images(trained_model, images, x_train, y_train)
        majority = np.array([np.bincount(row).argmax() for row in nearest.labels])
        shares.append((majority == y).mean())
    assert shares[0] > 0.6
    assert shares[1] < shares[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "umap"}, "`method`"),
        ({"y": np.zeros(3, int)}, "the same examples"),
        ({"x_adv": np.zeros((4, 6), "float32")}, "the same examples"),
        ({"layer": "third"}, "no layer 'third'"),
    ],
    ids=str,
)
def test_bad_input_of_the_geometry(identity, points, arguments, message):
    arguments = {"x": points[0], "y": points[1], "x_adv": points[0], **arguments}
    with pytest.raises(ValueError, match=message):
        feature_geometry(identity, **arguments)


def test_features_of_one_dimension_are_an_error(points):
    model = keras.Sequential([keras.layers.Dense(1, name="one"), keras.layers.Dense(3)])
    with pytest.raises(ValueError, match="at least two dimensions"):
        feature_geometry(model, points[0], points[1], points[0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"k": 0}, "`k`"),
        ({"k": 51}, "at least `k` of them"),
        ({"x_adv": np.zeros((2, 5), "float32")}, "images of the same shape"),
        ({"y_train": np.zeros(3, int)}, "the same examples"),
    ],
    ids=str,
)
def test_bad_input_of_nearest_images(identity, points, arguments, message):
    x, y = points
    arguments = {"x_adv": x[:2], "x_train": x, "y_train": y, **arguments}
    with pytest.raises(ValueError, match=message):
        nearest_images(identity, **arguments)


def test_missing_scikit_learn_is_an_error(monkeypatch, identity, points):
    x, y = points
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"keras-robust\[analysis\]"):
        feature_geometry(identity, x, y, x)
    with pytest.raises(ImportError, match=r"keras-robust\[analysis\]"):
        nearest_images(identity, x, x, y)
