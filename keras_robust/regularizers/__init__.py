"""Defences that are weight regularizers."""

from keras_robust.regularizers.angular_penalty import AngularPenalty as AngularPenalty
