"""Plots of features and errors are written, with the right texts."""

import numpy as np
import pytest

import keras_robust as kr
from keras_robust.report import feature_plots

RNG = np.random.default_rng(0)


@pytest.fixture
def texts(monkeypatch):
    """Returns the texts of the plots that the test draws."""
    found = []
    make_figure = feature_plots._figure

    def recorded(width, height):
        from matplotlib.text import Text

        figure = make_figure(width, height)
        save = figure.savefig

        def savefig(path):
            save(path)
            found.extend(text.get_text() for text in figure.findobj(Text) if text.get_text())

        figure.savefig = savefig
        return figure

    monkeypatch.setattr(feature_plots, "_figure", recorded)
    return found


def assert_is_png(path):
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    assert len(data) > 5000


@pytest.mark.parametrize("method", ["pca", "tsne"])
@pytest.mark.parametrize("num_classes", [2, 10, 30])
def test_geometry(tmp_path, texts, method, num_classes):
    labels = np.arange(60) % num_classes
    geometry = kr.evaluation.FeatureGeometry(
        clean=RNG.normal(size=(60, 2)),
        attacked=RNG.normal(size=(60, 2)),
        labels=labels,
        clean_classes=labels,
        attacked_classes=np.where(np.arange(60) < 15, labels, labels + 1),
        method=method,
        explained_variance=np.array([0.6, 0.3]) if method == "pca" else None,
    )
    names = [f"class_$_{index}" for index in range(31)]
    kr.evaluation.plot_geometry(geometry, tmp_path / "a.png", class_names=names, title="$x")
    assert_is_png(tmp_path / "a.png")
    assert {"clean (accuracy 100.0%)", "attacked (accuracy 25.0%)"} < set(texts)
    assert ("first principal component (60% of variance)" in texts) == (method == "pca")
    assert ("misclassified" in texts) == (r"class_\$_1" in texts) == (num_classes < 30)


@pytest.mark.parametrize("channels", [1, 3])
def test_nearest(tmp_path, texts, channels):
    nearest = kr.evaluation.NearestImages(
        queries=RNG.random((2, 8, 8, channels)),
        classes=np.array([1, 2]),
        images=RNG.random((2, 3, 8, 8, channels)),
        labels=np.array([[1, 1, 0], [2, 2, 2]]),
        distances=np.array([[0.1, 0.25, 1.5], [1.0, 2.0, 30.0]]),
        indices=np.zeros((2, 3), int),
    )
    path = tmp_path / "a.png"
    kr.evaluation.plot_nearest_images(nearest, path, labels=[0, 2], class_names=["x", "y", "z"])
    assert_is_png(path)
    assert {"x,\npredicted y", "z,\npredicted z", "y\n0.250", "x\n1.50", "z\n30.0"} <= set(texts)
    texts.clear()
    kr.evaluation.plot_nearest_images(nearest, path, title="a title")
    assert {"predicted 1", "2\n30.0", "a title"} <= set(texts)


def test_nearest_must_hold_images(tmp_path):
    nearest = kr.evaluation.NearestImages(*[np.zeros((2, 3))] * 6)
    with pytest.raises(ValueError, match="`nearest` must hold images"):
        kr.evaluation.plot_nearest_images(nearest, tmp_path / "a.png")


def test_perturbation_errors(tmp_path, texts):
    errors = {"first": {"conv": 0.1, "dense": 0.4}, "second": {"conv": 0.2, "dense": 0.3}}
    path = tmp_path / "a.png"
    kr.evaluation.plot_perturbation_error(errors, path, title="FGSM")
    assert_is_png(path)
    assert {"conv", "dense", "first", "second", "FGSM", "perturbation error"} <= set(texts)
    texts.clear()
    # Models with different layers are compared by the number of the layer.
    errors["third"] = {"embedding": 0.1, "block": 0.1, "head": 0.1}
    kr.evaluation.plot_perturbation_error(errors, path)
    assert {"1", "2", "3", "layer"} <= set(texts)
    assert "embedding" not in texts


def test_transfer(tmp_path, texts):
    clean = {"first": 0.9, "second": 0.8}
    accuracy = {"first": {"first": 0.05, "second": 0.31}, "second": {"first": 0.42, "second": 0.0}}
    matrix = kr.evaluation.TransferMatrix(clean, accuracy, 100)
    kr.evaluation.plot_transfer_matrix(matrix, tmp_path / "a.png", title="FGSM")
    assert_is_png(tmp_path / "a.png")
    assert {"clean images", "made on first", "made on second", "classified by"} <= set(texts)
    assert {"90.0", "80.0", "5.0", "31.0", "42.0", "0.0", "FGSM"} <= set(texts)
