"""Functions of a classifier's output that attacks and losses share."""

from keras import ops

from keras_robust.ops.precision import EPSILON
from keras_robust.types import Labels, Scores, Tensor
from keras_robust.validation import no_classifier

EXPECTED_OUTPUTS = (
    "The model must return one row of at least two class scores for each example, or a single "
    "score for two classes."
)
# Probabilities are raised to at least this value. The smallest normal float32 is 1.2e-38.
_SMALLEST_PROBABILITY = 1e-37
# Assumed rounding error of the difference of two logits, in units of `EPSILON` times the largest.
# It was measured between batches of 1 and batches of 300. In float32, where every sum of products
# is rounded, it was at most 16 units. In float16 and bfloat16, where only the sum's result is
# rounded, it was 0 for most images, below 1.1 for 99% of them, and at most 1.5.
_LOGIT_ROUNDING = {"float64": 24.0, "float32": 24.0, "float16": 0.75, "bfloat16": 0.75}
# A logit more than this factor larger than the compared ones is taken to mark a masked class. It
# does not count as the largest logit.
_MASKING_FACTOR = 100.0
# Assumed rounding error of the difference of two probabilities, in the same units.
_PROBABILITY_ROUNDING = 4.0


def class_scores(outputs: Scores, from_logits: bool = True) -> Tensor:
    """Returns a row of class scores for each example.

    A classifier with a single output yields the scores `(0, z)`, or `(1 - p, p)`.

    Args:
        outputs: tensor, a classifier's outputs, shape `(batch_size, num_classes)`; for a single
            output `(batch_size, 1)` or `(batch_size,)`.
        from_logits: bool. Whether a single output is a logit z, rather than the probability p of
            class 1. Defaults to `True`.
    """
    rank = len(outputs.shape)
    if rank not in (1, 2):
        raise no_classifier(EXPECTED_OUTPUTS, f"outputs of shape {tuple(outputs.shape)}")
    if rank == 2 and outputs.shape[1] != 1:
        return outputs
    score = ops.reshape(outputs, (-1, 1))
    return ops.concatenate([ops.zeros_like(score) if from_logits else 1 - score, score], axis=1)


def probabilities_to_logits(probabilities: Scores) -> Tensor:
    """Returns `log p`, so that `softmax(log p) = p`.

    It is finite and has a finite gradient even at `p = 0`.
    """
    return ops.log(ops.maximum(probabilities, _SMALLEST_PROBABILITY))


def log_probabilities(outputs: Scores, from_logits: bool) -> Tensor:
    """Converts a classifier's outputs to log-probabilities, shape `(batch_size, num_classes)`."""
    outputs = class_scores(outputs, from_logits)
    return ops.log_softmax(outputs) if from_logits else probabilities_to_logits(outputs)


def kl_divergence(log_p: Scores, log_q: Scores) -> Tensor:
    """Computes `KL(p || q) = sum_j p_j (log p_j - log q_j)` for each row."""
    return ops.sum(ops.exp(log_p) * (log_p - log_q), axis=-1)


def _others(logits: Scores, y: Labels) -> Tensor:
    """Sets the logit of class `y` to minus infinity."""
    is_label = ops.one_hot(y, logits.shape[-1], dtype="bool")
    return ops.where(is_label, ops.full_like(logits, -float("inf")), logits)


def of_class(logits: Scores, y: Labels) -> Tensor:
    """Returns `z_y`, shape `(batch_size,)`."""
    return ops.squeeze(ops.take_along_axis(logits, ops.expand_dims(y, -1), axis=-1), -1)


def margin(logits: Scores, y: Labels) -> Tensor:
    """Computes `max_{j != y} z_j - z_y`, shape `(batch_size,)`.

    It is positive where `y` is not predicted.
    """
    return ops.max(_others(logits, y), axis=-1) - of_class(logits, y)


def rounding(logits: Scores, y: Labels, precision: str) -> Tensor:
    """Bounds the rounding error of `margin(logits, y)`, shape `(batch_size,)`.

    The bound is a share of the largest logit, so it scales with the logits.

    Args:
        logits: tensor, shape `(batch_size, num_classes)`.
        y: int tensor, shape `(batch_size,)`.
        precision: name of the least precise dtype that the model computes in.
    """
    other = ops.max(_others(logits, y), axis=-1)
    compared = ops.maximum(ops.abs(other), ops.abs(of_class(logits, y)))
    largest = ops.minimum(ops.max(ops.abs(logits), axis=-1), _MASKING_FACTOR * compared)
    return _LOGIT_ROUNDING[precision] * EPSILON[precision] * largest


def rounding_of_probabilities(p: Tensor, precision: str) -> Tensor:
    """Bounds the rounding error of the difference of the largest probability and another."""
    return _PROBABILITY_ROUNDING * EPSILON[precision] * ops.max(p, axis=-1)


def log_odds_against(logits: Scores, y: Labels) -> Tensor:
    """Computes `m = log sum_{j != y} exp(z_j) - z_y`, the log-odds that the class is not `y`.

    Cross-entropy is `log(1 + exp(m))`, an increasing function of m. For each example, both have the
    same maximisers and, up to the positive factor `sigmoid(m)`, the same gradient. Where a softmax
    saturates, this factor underflows to 0 in the gradient of the cross-entropy. The gradient of m
    does not contain it.
    """
    return ops.logsumexp(_others(logits, y), axis=-1) - of_class(logits, y)


def dlr(logits: Scores, y: Labels) -> Tensor:
    """Computes `-(z_y - max_{j != y} z_j) / (z_pi1 - z_pi3)`, the difference-of-logits ratio.

    `pi` sorts the logits in decreasing order. The ratio does not change if a constant is added to
    the logits or if they are multiplied by a positive constant. It requires at least 3 classes
    (Croce and Hein, 2020, eq. 6).
    """
    largest = ops.top_k(logits, 3)[0]
    return _ratio(margin(logits, y), largest[:, 0] - largest[:, 2])


def dlr_targeted(logits: Scores, y: Labels, target: Tensor) -> Tensor:
    """Computes `-(z_y - z_t) / (z_pi1 - (z_pi3 + z_pi4) / 2)`, the ratio for a target class.

    It requires at least 4 classes (Croce and Hein, 2020, eq. 7).
    """
    largest = ops.top_k(logits, 4)[0]
    difference = of_class(logits, target) - of_class(logits, y)
    return _ratio(difference, largest[:, 0] - (largest[:, 2] + largest[:, 3]) / 2)


def _ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    """Computes the ratio, or returns the numerator where the denominator is 0 (tied logits)."""
    return numerator / ops.where(denominator > 0, denominator, ops.ones_like(denominator))


def logit_range(logits: Scores) -> Tensor:
    """Computes `max_j z_j - min_j z_j`, shape `(batch_size,)`; 1 where that is 0."""
    difference = ops.max(logits, axis=-1) - ops.min(logits, axis=-1)
    return ops.where(difference > 0, difference, ops.ones_like(difference))


def other_classes(logits: Scores, y: Labels) -> Tensor:
    """Returns all classes but `y`, the most likely first.

    The shape is `(batch_size, num_classes - 1)`.
    """
    return ops.cast(ops.top_k(_others(logits, y), logits.shape[-1] - 1)[1], "int32")
