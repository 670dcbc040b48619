"""`kr.datasets.load` reads data sets of TensorFlow Datasets."""

import pathlib
import sys
from typing import ClassVar

import keras
import numpy as np
import pytest

import keras_robust as kr
from keras_robust.model.arrays import as_arrays

tfds = pytest.importorskip(
    "tensorflow_datasets", reason="TensorFlow Datasets is in the extra `datasets`"
)
pytestmark = pytest.mark.slow_on_jax


@pytest.mark.slow
def test_embedded_images_are_from_the_full_set(full_data_dir):
    full = kr.datasets.load("fashion_mnist", "test", data_dir=full_data_dir)
    x, y = as_arrays(full)
    chosen = np.sort(np.concatenate([np.flatnonzero(y == c)[:200] for c in range(10)]))
    x_subset, y_subset = as_arrays(kr.datasets.load("fashion_mnist_subset", "test"))
    np.testing.assert_array_equal(x_subset, x[chosen])
    np.testing.assert_array_equal(y_subset, y[chosen])


@pytest.mark.parametrize("from_environment", [False, True])
def test_full_mnist(full_data_dir, from_environment, monkeypatch):
    if from_environment:
        monkeypatch.setenv("TFDS_DATA_DIR", full_data_dir)
        dataset = kr.datasets.load("mnist", "train")
    else:
        monkeypatch.delenv("TFDS_DATA_DIR")
        dataset = kr.datasets.load("mnist", "train", data_dir=full_data_dir)
    assert len(dataset) == 60_000
    image, label = next(iter(dataset))
    assert image.shape == (28, 28, 1)
    assert float(np.asarray(image).max()) <= 1.0
    assert 0 <= int(label) <= 9
    assert len(kr.datasets.load("mnist", "test[:30]", data_dir=full_data_dir)) == 30


def test_unknown_names(tmp_path):
    with pytest.raises(
        ValueError, match=r"`name` must be 'fashion_mnist_subset' or.*'no_such_data'"
    ):
        kr.datasets.load("no_such_data", "train", data_dir=str(tmp_path))


def test_unknown_split_of_a_full_set(full_data_dir):
    with pytest.raises(ValueError, match=r"splits \['test', 'train'\]. Received: split='val'"):
        kr.datasets.load("mnist", "val", data_dir=full_data_dir)


def test_data_without_images(tmp_path):
    with pytest.raises(ValueError, match="labelled 8-bit images"):
        kr.datasets.load("imdb_reviews", "train", data_dir=str(tmp_path))


LABEL = tfds.features.ClassLabel(num_classes=2)
SCALAR = tfds.features.Scalar(np.float32)
IMAGE = tfds.features.Image(shape=(4, 4, 1))


class Described(tfds.core.GeneratorBasedBuilder):
    """A data set with a description and without data."""

    VERSION = tfds.core.Version("1.0.0")
    pkg_dir_path = pathlib.Path("nowhere")
    features: ClassVar = {"image": IMAGE, "label": LABEL}
    keys = ("image", "label")

    def _info(self):
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(self.features),
            supervised_keys=self.keys,
        )

    def _split_generators(self, dl_manager):
        raise NotImplementedError

    def _generate_examples(self):
        raise NotImplementedError


@pytest.mark.parametrize(
    ("features", "keys"),
    [
        # A target that would be rounded to an integer, a label for each pixel, several labels.
        ({"image": IMAGE, "label": SCALAR}, ("image", "label")),
        ({"image": IMAGE, "label": IMAGE}, ("image", "label")),
        ({"image": IMAGE, "label": tfds.features.Sequence(LABEL)}, ("image", "label")),
        ({"image": IMAGE, "label": {"coarse": LABEL}}, ("image", "label")),
        ({"image": tfds.features.Tensor(shape=(4, 4, 1), dtype=np.float32), "label": LABEL},
         ("image", "label")),
        ({"image": IMAGE, "label": LABEL}, ({"image": "image"}, "label")),
        ({"image": IMAGE, "label": LABEL}, None),
    ],
)  # fmt: skip
def test_data_without_one_label_per_image_are_an_error(features, keys, monkeypatch, tmp_path):
    monkeypatch.setattr(Described, "features", features)
    monkeypatch.setattr(Described, "keys", keys)
    with pytest.raises(ValueError, match="labelled 8-bit images, with one integer label each"):
        kr.datasets.load("described", "test", data_dir=str(tmp_path))


def test_data_with_one_label_per_image_are_generated(tmp_path):
    with pytest.raises(NotImplementedError):
        kr.datasets.load("described", "test", data_dir=str(tmp_path))


def test_images_of_several_sizes_in_memory_are_an_error(monkeypatch):
    if keras.backend.backend() == "tensorflow":
        pytest.skip("a `tf.data.Dataset` may hold them")
    import tensorflow as tf

    data = tf.data.Dataset.from_generator(
        lambda: iter([(np.zeros((28, 28, 1), "uint8"), 0)]),
        output_signature=(tf.TensorSpec((None, 28, 1), "uint8"), tf.TensorSpec((), "int64")),
    )
    module = sys.modules[kr.datasets.load.__module__]
    monkeypatch.setattr(module, "_from_tensorflow_datasets", lambda *arguments: data)
    with pytest.raises(ValueError, match="images of one size, which are held in memory"):
        kr.datasets.load("cats_vs_dogs", "train")
