"""Weight regularizers that improve robustness."""

from keras_robust.regularizers.angular_penalty import AngularPenalty as AngularPenalty
