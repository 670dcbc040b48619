"""Defences and measurements that are callbacks."""

from keras_robust.callbacks.robust_accuracy import RobustAccuracy as RobustAccuracy
from keras_robust.callbacks.template_update import TemplateUpdate as TemplateUpdate
