"""Defences that are layers."""

from keras_robust.layers.guided_denoiser import GuidedDenoiser as GuidedDenoiser
from keras_robust.layers.max_mahalanobis_classifier import (
    MaxMahalanobisClassifier as MaxMahalanobisClassifier,
)
from keras_robust.layers.tanh_classifier import TanhClassifier as TanhClassifier
from keras_robust.layers.total_variation import TotalVariation as TotalVariation
from keras_robust.layers.wnll_head import WNLLHead as WNLLHead
