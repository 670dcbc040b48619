"""Weight constraints that improve robustness."""

from keras_robust.constraints.parseval_tightness import ParsevalTightness as ParsevalTightness
