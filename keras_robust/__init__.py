"""Adversarial attacks, defences and robustness reports for Keras classifiers."""

try:
    import keras as _keras  # noqa: F401
except ImportError as error:  # Keras's own message names the missing module only.
    _missing = (error.name or "").partition(".")[0]
    if _missing not in ("tensorflow", "jax"):
        raise
    _other = {"tensorflow": "jax", "jax": "tensorflow"}[_missing]
    raise ImportError(
        f"Keras's backend is {_missing!r}, which is not installed. Install it with the extra "
        f"`{_missing}`: `pip install 'keras-robust[{_missing}]'`. Or, if {_other!r} is installed, "
        f"set the environment variable KERAS_BACKEND to {_other!r} before importing Keras."
    ) from error

from keras_robust import attacks as attacks
from keras_robust import callbacks as callbacks
from keras_robust import constraints as constraints
from keras_robust import datasets as datasets
from keras_robust import evaluation as evaluation
from keras_robust import layers as layers
from keras_robust import losses as losses
from keras_robust import neighbors as neighbors
from keras_robust import ops as ops
from keras_robust import regularizers as regularizers
from keras_robust import training as training
from keras_robust.evaluation import evaluate as evaluate
from keras_robust.model.black_box import BlackBox as BlackBox
from keras_robust.training import RobustModel as RobustModel

__version__ = "0.2.0"
