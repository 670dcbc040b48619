"""Real data as `tf.data`."""

from keras_robust.datasets.load import load as load
