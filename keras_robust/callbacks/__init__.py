"""Callbacks that measure robust accuracy and fill the template of a WNLL head."""

from keras_robust.callbacks.robust_accuracy import RobustAccuracy as RobustAccuracy
from keras_robust.callbacks.template_update import TemplateUpdate as TemplateUpdate
