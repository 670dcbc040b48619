"""Nearest-neighbour search."""

from keras_robust.neighbors.exact import ExactIndex as ExactIndex
from keras_robust.neighbors.scann import ScannIndex as ScannIndex
