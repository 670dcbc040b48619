"""Training models with the losses that run them again."""

from keras_robust.training.robust_model import RobustModel as RobustModel
