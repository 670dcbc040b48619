"""Image data sets."""

from keras_robust.datasets.array_dataset import ArrayDataset as ArrayDataset
from keras_robust.datasets.load import load as load
