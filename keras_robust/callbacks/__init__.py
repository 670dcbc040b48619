"""Defences and measurements that are callbacks."""

from keras_robust.callbacks.robust_accuracy import RobustAccuracy as RobustAccuracy
