"""Pure tensor functions without state."""

from keras_robust.ops.balls import LEAST_SHARE as LEAST_SHARE
from keras_robust.ops.balls import euclidean_norm as euclidean_norm
from keras_robust.ops.balls import maximum_norm as maximum_norm
from keras_robust.ops.balls import per_example as per_example
from keras_robust.ops.balls import per_example_where as per_example_where
from keras_robust.ops.balls import projection as projection
from keras_robust.ops.balls import random_in_ball as random_in_ball
from keras_robust.ops.balls import steepest_direction as steepest_direction
from keras_robust.ops.hyperplane import to_hyperplane as to_hyperplane
from keras_robust.ops.labels import sparse_labels as sparse_labels
from keras_robust.ops.logits import dlr as dlr
from keras_robust.ops.logits import dlr_targeted as dlr_targeted
from keras_robust.ops.logits import kl_divergence as kl_divergence
from keras_robust.ops.logits import log_odds_against as log_odds_against
from keras_robust.ops.logits import log_probabilities as log_probabilities
from keras_robust.ops.logits import logit_range as logit_range
from keras_robust.ops.logits import margin as margin
from keras_robust.ops.logits import of_class as of_class
from keras_robust.ops.logits import other_classes as other_classes
from keras_robust.ops.logits import probabilities_to_logits as probabilities_to_logits
from keras_robust.ops.logits import rounding as rounding
from keras_robust.ops.logits import rounding_of_probabilities as rounding_of_probabilities
from keras_robust.ops.simplex import simplex_gram as simplex_gram
from keras_robust.ops.simplex import simplex_vertices as simplex_vertices
from keras_robust.ops.total_variation import total_variation as total_variation
from keras_robust.ops.wnll import wnll as wnll
