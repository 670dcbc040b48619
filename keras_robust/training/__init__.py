"""Training of robust models."""

from keras_robust.training.adapt_template import adapt_template as adapt_template
from keras_robust.training.fit_wnll import fit_wnll as fit_wnll
from keras_robust.training.robust_model import RobustModel as RobustModel
