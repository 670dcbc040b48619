"""What attacks and losses compute from a classifier's output."""

from typing import Any

from keras import ops

# Below the smallest positive float32 that is not subnormal, a probability is taken for this one.
_SMALLEST_PROBABILITY = 1e-37


def probabilities_to_logits(probabilities: Any) -> Any:
    """`log p`, finite and with a finite gradient at `p = 0`. `softmax(log p) = p`."""
    return ops.log(ops.maximum(probabilities, _SMALLEST_PROBABILITY))


def log_probabilities(outputs: Any, from_logits: bool) -> Any:
    """Log-probabilities of a classifier's outputs, shape `(batch_size, num_classes)`."""
    return ops.log_softmax(outputs) if from_logits else probabilities_to_logits(outputs)


def _others(logits: Any, y: Any) -> Any:
    """The logits with that of class `y` at minus infinity."""
    is_label = ops.one_hot(y, logits.shape[-1], dtype="bool")
    return ops.where(is_label, ops.full_like(logits, -float("inf")), logits)


def _of_label(logits: Any, y: Any) -> Any:
    return ops.squeeze(ops.take_along_axis(logits, ops.expand_dims(y, -1), axis=-1), -1)


def margin(logits: Any, y: Any) -> Any:
    """`max_{j != y} z_j - z_y`, shape `(batch_size,)`: positive where `y` is not predicted."""
    return ops.max(_others(logits, y), axis=-1) - _of_label(logits, y)


def log_odds_against(logits: Any, y: Any) -> Any:
    """`m = log sum_{j != y} exp(z_j) - z_y`, the log-odds that the class is not `y`.

    Cross-entropy is `log(1 + exp(m))`, an increasing function of it: per example both have the
    same maximisers and, up to a positive factor, the same gradient. That factor, `sigmoid(m)`,
    is what underflows to 0 where a softmax saturates; `m` has no such factor.
    """
    return ops.logsumexp(_others(logits, y), axis=-1) - _of_label(logits, y)
