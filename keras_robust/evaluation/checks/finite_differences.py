"""Checks whether the model's gradient is the derivative of its outputs."""

from typing import Any

import numpy as np
from keras import ops

from keras_robust import backend
from keras_robust.evaluation.checks.case import Case
from keras_robust.evaluation.checks.gradients import fails_without_gradient
from keras_robust.evaluation.checks.outcome import Outcome
from keras_robust.model.classifier import Classifier
from keras_robust.ops.logits import log_odds_against, logit_range, rounding
from keras_robust.types import Images, Labels, Seed

# Ordinary networks stay below 0.05 in float32: ReLU networks below 0.01, networks with max pooling
# below 0.04. If the gradient is not the derivative of the function, the two are unrelated, and the
# median is near 1.
_MAX_RELATIVE_ERROR = 0.2
_NUM_DIRECTIONS = 4
# If predictions depend on the batch, this many examples are moved one at a time. If all examples
# moved at once, a single prediction that jumps (as with a graph of neighbours) would affect every
# difference.
_NUM_MOVED = 24
# Step sizes in units of the bounds' range. A small step drowns in float32 rounding, and a large
# step crosses the kinks of a ReLU network, so the step with the best agreement counts.
_STEPS = (1e-4, 1e-3, 1e-2)
# Noise added to the images first, in the same units. In regions of equal pixels, such as a black
# background, max pooling has a kink and no derivative.
_JITTER = 0.02


@fails_without_gradient
def agree(case: Case) -> Outcome:
    """Compares directional derivatives of the log-odds with central differences.

    For `v` with entries of -1 and 1, compares `<grad f(x), v>` with
    `(f(x + h v) - f(x - h v)) / 2h`. `f` are the log-odds of the logits divided by their typical
    range. The result therefore does not depend on the scale of the logits: logits of 1e-12 would
    vanish in the logarithm. Pairs are not compared if both values are below the rounding error of a
    difference.

    Before that, the images are moved away from the bounds, so that no step leaves them, and a
    little noise is added. If predictions depend on the batch, each `v` moves a single example, and
    `f` is the sum over the batch.
    """
    low, high = case.attack.bounds
    jitter = _JITTER * case.range
    room = jitter + _STEPS[-1] * case.range
    rng = np.random.default_rng(case.seed)
    x = np.clip(case.x, low + room, high - room).astype("float32")
    x += rng.uniform(-jitter, jitter, x.shape).astype("float32")
    signs = [sign * np.asarray(case.range, "float32") for sign in _directions(case, rng)]
    scale = np.float32(np.median(case.on_images(_compiled(case, "range"), x)))
    try:
        gradient = case.on_images(_compiled(case, "gradient", scale), x).astype("float64")
    except backend.NoGradientError:
        if case.attack.objective is None:
            raise
        sentence = "The model has no gradient. The attack follows its `objective` instead."
        return Outcome(None, sentence)
    axes = tuple(range(1, x.ndim))
    expected = np.array([(gradient * sign).sum(axis=axes) for sign in signs])
    expected = _summed(case, expected)
    values = _compiled(case, "values", scale)
    noise = case.on_images(_compiled(case, "rounding", scale), x).astype("float64")
    noise = _summed(case, np.broadcast_to(noise, (len(signs), len(x))))
    errors = []
    for step in map(np.float32, _STEPS):
        rise = [
            case.on_images(values, x + step * sign).astype("float64")
            - case.on_images(values, x - step * sign)
            for sign in signs
        ]
        measured = _summed(case, np.array(rise)) / (2 * step)
        errors.append(_median_error(expected, measured, noise / step))
    known = [error for error in errors if error is not None]
    if not known:
        sentence = "The log-odds do not change by more than rounding, so there is no comparison."
        return Outcome(None, sentence)
    figures = {"median_relative_error": min(known)}
    facts = (
        "Along random directions, the gradient differs from finite differences by "
        f"{min(known):.1%} (median)."
    )
    if case.attack.objective is not None:
        return Outcome(None, f"{facts} The attack follows its `objective` instead.", figures)
    if min(known) <= _MAX_RELATIVE_ERROR:
        return Outcome(True, facts, figures)
    if _is_half_precision(case.classifier):
        return Outcome(None, f"{facts} This may be due to half precision alone.", figures)
    sentence = (
        f"{facts} The gradient is not the derivative of the model's outputs, and misleads attacks."
    )
    return Outcome(False, sentence, figures)


def _directions(case: Case, rng: np.random.Generator) -> list[np.ndarray]:
    """Returns random directions for all images, or for single images if predictions are joint."""

    def signs() -> np.ndarray:
        return rng.choice(np.array([-1, 1], "float32"), case.x.shape)

    if not case.is_joint:
        return [signs() for _ in range(_NUM_DIRECTIONS)]
    moved = np.eye(len(case.x), dtype="float32")[rng.permutation(case.examples)[:_NUM_MOVED]]
    return [signs() * alone.reshape(-1, *[1] * (case.x.ndim - 1)) for alone in moved]


def _summed(case: Case, changes: np.ndarray) -> np.ndarray:
    """Sums changes of shape `(directions, num_images)` over the images if predictions are joint."""
    return changes.sum(axis=1, keepdims=True) if case.is_joint else changes


def _is_half_precision(classifier: Classifier) -> bool:
    """Returns whether any layer of a Keras model computes in float16 or bfloat16."""
    dtypes = [getattr(layer, "compute_dtype", "") or "" for layer in classifier.layers]
    return any(dtype.endswith("float16") for dtype in dtypes)


def _median_error(expected: np.ndarray, measured: np.ndarray, noise: np.ndarray) -> float | None:
    """Returns the median of `|a - b| / max(|a|, |b|)`.

    Ignores pairs with both values within the noise, and returns `None` if no pair remains.
    """
    largest = np.maximum(abs(expected), abs(measured))
    counted = ~(largest <= noise)
    if not counted.any():
        return None
    error = abs(expected - measured)[counted] / largest[counted]
    return float(np.median(np.where(np.isnan(error), np.inf, error)))


def _compiled(case: Case, what: str, *scale: np.float32) -> Any:
    from_logits = case.attack.from_logits

    def function(classifier: Classifier, x: Images, y: Labels, seed: Seed, *scale: Any) -> Any:
        def logits(x: Images) -> Any:
            return classifier.logits(x, from_logits) / (scale[0] if scale else 1.0)

        def log_odds(x: Images) -> Any:
            return log_odds_against(logits(x), y)

        with backend.seeded(classifier.random_state, seed):
            if what == "range":
                return logit_range(logits(x))
            if what == "values":
                return log_odds(x)
            if what == "rounding":
                return rounding(logits(x), y, classifier.precision)
            return backend.input_gradient(lambda x: ops.sum(log_odds(x)), x)

    key = ("log-odds", what, from_logits)
    run = case.classifier.compiled(key, function, num_batched=2)
    return lambda x, y, seed: run(x, y, seed, *scale)
