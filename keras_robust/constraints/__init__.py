"""Defences that are weight constraints."""

from keras_robust.constraints.parseval_tightness import ParsevalTightness as ParsevalTightness
