"""The command `keras-robust`."""

from keras_robust.cli.compiled import keep_compiled as keep_compiled
from keras_robust.cli.main import main as main
