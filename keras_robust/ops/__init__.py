"""Pure tensor functions without state."""

from keras_robust.ops.logits import margin as margin
from keras_robust.ops.total_variation import total_variation as total_variation
from keras_robust.ops.wnll import wnll as wnll
