"""Defences that are layers."""

from keras_robust.layers.tanh_classifier import TanhClassifier as TanhClassifier
