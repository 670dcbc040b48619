"""What attacks and losses compute from a classifier's output."""

from typing import Any

from keras import ops

from keras_robust.ops.precision import EPSILON
from keras_robust.validation import no_classifier

EXPECTED_OUTPUTS = (
    "The model must return one row of at least two class scores for each example, or one score of "
    "two classes."
)
# Below the smallest positive float32 that is not subnormal, a probability is taken for this one.
_SMALLEST_PROBABILITY = 1e-37
# How far rounding moves the difference of two logits, in units of `EPSILON` times the largest.
# From batches of 1 to batches of 300 it was by up to 16 of them in float32, where every sum of
# products is rounded. In float16 and bfloat16, where only its result is, it was by none for most
# images, below 1.1 for 99 in 100, and by 1.5 at most.
_MOVES = {"float64": 24.0, "float32": 24.0, "float16": 0.75, "bfloat16": 0.75}
# A logit that is larger by more than this is none that the others are made with: a class is masked.
_MASKED = 100.0
# How far rounding moves the difference of two probabilities, in the same unit.
_MOVES_PROBABILITIES = 4.0


def class_scores(outputs: Any, from_logits: bool = True) -> Any:
    """A row of class scores for each example: of one output `(0, z)`, or `(1 - p, p)`.

    Args:
        outputs: tensor, a classifier's outputs, shape `(batch_size, num_classes)`; of one output
            `(batch_size, 1)` or `(batch_size,)`.
        from_logits: bool. Whether one output is a logit z, rather than the probability p of class
            1. Defaults to `True`.
    """
    rank = len(outputs.shape)
    if rank not in (1, 2):
        raise no_classifier(EXPECTED_OUTPUTS, f"outputs of shape {tuple(outputs.shape)}")
    if rank == 2 and outputs.shape[1] != 1:
        return outputs
    score = ops.reshape(outputs, (-1, 1))
    return ops.concatenate([ops.zeros_like(score) if from_logits else 1 - score, score], axis=1)


def probabilities_to_logits(probabilities: Any) -> Any:
    """`log p`, finite and with a finite gradient at `p = 0`. `softmax(log p) = p`."""
    return ops.log(ops.maximum(probabilities, _SMALLEST_PROBABILITY))


def log_probabilities(outputs: Any, from_logits: bool) -> Any:
    """Log-probabilities of a classifier's outputs, shape `(batch_size, num_classes)`."""
    outputs = class_scores(outputs, from_logits)
    return ops.log_softmax(outputs) if from_logits else probabilities_to_logits(outputs)


def kl_divergence(log_p: Any, log_q: Any) -> Any:
    """`KL(p || q) = sum_j p_j (log p_j - log q_j)` for each row of log-probabilities."""
    return ops.sum(ops.exp(log_p) * (log_p - log_q), axis=-1)


def _others(logits: Any, y: Any) -> Any:
    """The logits with that of class `y` at minus infinity."""
    is_label = ops.one_hot(y, logits.shape[-1], dtype="bool")
    return ops.where(is_label, ops.full_like(logits, -float("inf")), logits)


def of_class(logits: Any, y: Any) -> Any:
    """`z_y`, shape `(batch_size,)`."""
    return ops.squeeze(ops.take_along_axis(logits, ops.expand_dims(y, -1), axis=-1), -1)


def margin(logits: Any, y: Any) -> Any:
    """`max_{j != y} z_j - z_y`, shape `(batch_size,)`: positive where `y` is not predicted."""
    return ops.max(_others(logits, y), axis=-1) - of_class(logits, y)


def rounding(logits: Any, y: Any, precision: str) -> Any:
    """How far rounding may move `margin(logits, y)`, shape `(batch_size,)`.

    It is a share of the largest logit, so it goes with their scale.

    Args:
        logits: tensor, shape `(batch_size, num_classes)`.
        y: int tensor, shape `(batch_size,)`.
        precision: the name of the least precise dtype that the model computes in.
    """
    other = ops.max(_others(logits, y), axis=-1)
    compared = ops.maximum(ops.abs(other), ops.abs(of_class(logits, y)))
    largest = ops.minimum(ops.max(ops.abs(logits), axis=-1), _MASKED * compared)
    return _MOVES[precision] * EPSILON[precision] * largest


def rounding_of_probabilities(p: Any, precision: str) -> Any:
    """How far rounding may move the difference of the largest probability and another."""
    return _MOVES_PROBABILITIES * EPSILON[precision] * ops.max(p, axis=-1)


def log_odds_against(logits: Any, y: Any) -> Any:
    """`m = log sum_{j != y} exp(z_j) - z_y`, the log-odds that the class is not `y`.

    Cross-entropy is `log(1 + exp(m))`, an increasing function of it: per example both have the
    same maximisers and, up to a positive factor, the same gradient. That factor, `sigmoid(m)`,
    is what underflows to 0 where a softmax saturates; `m` has no such factor.
    """
    return ops.logsumexp(_others(logits, y), axis=-1) - of_class(logits, y)


def dlr(logits: Any, y: Any) -> Any:
    """`-(z_y - max_{j != y} z_j) / (z_pi1 - z_pi3)`, the difference-of-logits ratio.

    `pi` sorts the logits in decreasing order. It does not change where the logits are shifted or
    multiplied by a constant. At least 3 classes (Croce and Hein, 2020, eq. 6).
    """
    largest = ops.top_k(logits, 3)[0]
    return _ratio(margin(logits, y), largest[:, 0] - largest[:, 2])


def dlr_targeted(logits: Any, y: Any, target: Any) -> Any:
    """`-(z_y - z_t) / (z_pi1 - (z_pi3 + z_pi4) / 2)`, the ratio for a target class.

    At least 4 classes (Croce and Hein, 2020, eq. 7).
    """
    largest = ops.top_k(logits, 4)[0]
    difference = of_class(logits, target) - of_class(logits, y)
    return _ratio(difference, largest[:, 0] - (largest[:, 2] + largest[:, 3]) / 2)


def _ratio(numerator: Any, denominator: Any) -> Any:
    """The ratio; where the largest logits tie, the numerator alone."""
    return numerator / ops.where(denominator > 0, denominator, ops.ones_like(denominator))


def logit_range(logits: Any) -> Any:
    """`max_j z_j - min_j z_j`, shape `(batch_size,)`; 1 where that is 0."""
    difference = ops.max(logits, axis=-1) - ops.min(logits, axis=-1)
    return ops.where(difference > 0, difference, ops.ones_like(difference))


def other_classes(logits: Any, y: Any) -> Any:
    """All classes but `y`, the most likely first, shape `(batch_size, num_classes - 1)`."""
    return ops.cast(ops.top_k(_others(logits, y), logits.shape[-1] - 1)[1], "int32")
