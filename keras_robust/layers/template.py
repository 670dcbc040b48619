"""Which examples become the template."""

import numpy as np


def choose_template(labels: np.ndarray, size: int, num_classes: int, seed: int) -> np.ndarray:
    """`size` of the labeled examples, at random, at least one of each class."""
    generator = np.random.default_rng(seed)
    order = generator.permutation(np.flatnonzero(labels >= 0))
    firsts = [int(np.argmax(labels[order] == label)) for label in range(num_classes)]
    others = np.setdiff1d(np.arange(len(order)), firsts)
    return np.sort(order[np.concatenate([firsts, others])[:size]])
