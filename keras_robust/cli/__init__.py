"""The command `keras-robust`."""

from keras_robust.cli.main import main as main
