"""Measuring how robust a classifier is."""

from keras_robust.evaluation.accuracy import robust_accuracy as robust_accuracy
from keras_robust.evaluation.curves import robustness_curve as robustness_curve
from keras_robust.evaluation.evaluate import evaluate as evaluate
from keras_robust.evaluation.plots import plot_curves as plot_curves
from keras_robust.evaluation.plots import plot_samples as plot_samples
from keras_robust.evaluation.report import Report as Report
from keras_robust.evaluation.report import comparison_table as comparison_table
