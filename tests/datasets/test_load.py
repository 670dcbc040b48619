"""The embedded data, and the errors for other data sets that cannot be read."""

import pathlib
import sys

import numpy as np
import pytest

import keras_robust as kr
from keras_robust.model.arrays import as_arrays


@pytest.mark.parametrize(("split", "per_class"), [("train", 1000), ("test", 200)])
def test_embedded_subset_is_stratified(split, per_class):
    dataset = kr.datasets.load("fashion_mnist_subset", split)
    assert len(dataset) == 10 * per_class
    x, y = as_arrays(dataset)
    assert x.shape == (10 * per_class, 28, 28, 1)
    assert x.dtype == np.float32
    assert y.dtype == np.int64
    assert (x.min(), x.max()) == (0.0, 1.0)
    np.testing.assert_array_equal(np.bincount(y), per_class)
    # Published mean and standard deviation of Fashion-MNIST's training images.
    assert abs(x.mean() - 0.2860) < 0.005
    assert abs(x.std() - 0.3530) < 0.005


def test_embedded_file_is_small_and_licensed():
    folder = pathlib.Path(kr.datasets.__file__).parent / "data"
    assert (folder / "fashion_mnist_subset.npz").stat().st_size <= 6 * 2**20
    assert "MIT License" in (folder / "LICENSE").read_text()


def test_unknown_splits():
    with pytest.raises(ValueError, match=r"splits 'train' and 'test'. Received: split='val'"):
        kr.datasets.load("fashion_mnist_subset", "val")


@pytest.mark.parametrize("missing", ["tensorflow", "tensorflow_datasets"])
def test_missing_packages_are_named_in_the_error(missing, monkeypatch):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ImportError, match=r"pip install 'keras-robust\[datasets\]'.*name='mnist'"):
        kr.datasets.load("mnist", "train")
