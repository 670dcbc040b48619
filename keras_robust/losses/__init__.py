"""Loss functions that train robust models: `kr.RobustModel(model).compile(loss=...)`."""

from keras_robust.losses.adversarial_training import AdversarialTraining as AdversarialTraining
from keras_robust.losses.deep_defense import DeepDefense as DeepDefense
from keras_robust.losses.fisher_information import FisherInformation as FisherInformation
from keras_robust.losses.graph_interpolation import GraphInterpolation as GraphInterpolation
from keras_robust.losses.guided_denoising import GuidedDenoising as GuidedDenoising
from keras_robust.losses.latent_disparity import LatentDisparity as LatentDisparity
from keras_robust.losses.mart import MART as MART
from keras_robust.losses.max_mahalanobis import MaxMahalanobis as MaxMahalanobis
from keras_robust.losses.model_loss import ModelLoss as ModelLoss
from keras_robust.losses.stability_training import StabilityTraining as StabilityTraining
from keras_robust.losses.sum import Sum as Sum
from keras_robust.losses.trades import TRADES as TRADES
