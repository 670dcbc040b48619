"""Checks whether the softmax or the activations of the model are saturated."""

from typing import Any

import keras
import numpy as np
from keras import ops

from keras_robust import backend
from keras_robust.evaluation.checks.case import Case
from keras_robust.evaluation.checks.outcome import Outcome
from keras_robust.metrics.activations import calls_of_one, features, layer_calls
from keras_robust.model.calls import LayerCall
from keras_robust.model.classifier import Classifier
from keras_robust.model.patching import without_final_activation
from keras_robust.model.smoothed import SmoothedClassifier
from keras_robust.types import Images, Labels, Seed

# In float32, a softmax is exactly 1 at margins above about 17. Ordinary networks have such margins
# on some images, but not on most.
_MAX_CERTAIN_SHARE = 0.5
# |tanh(h)| > 0.999 if |h| > 3.8, where the slope is below 0.002.
_FLAT = 0.999
_MAX_FLAT_SHARE = 0.5
_SYMMETRIC = (keras.activations.tanh, keras.activations.hard_tanh, ops.tanh, ops.hard_tanh)
_POSITIVE = (
    keras.activations.sigmoid, keras.activations.hard_sigmoid, ops.sigmoid, ops.hard_sigmoid,
)  # fmt: skip


def logits(case: Case) -> Outcome:
    """Counts the examples whose softmax is exactly 1 in float32, so their cross-entropy is 0."""
    share = float(np.mean(case.probabilities().max(axis=1) == 1))
    figures = {"share_certain": share}
    facts = f"The softmax is exactly 1 in float32 for {share:.1%} of the examples"
    if share <= _MAX_CERTAIN_SHARE:
        return Outcome(True, f"{facts}.", figures)
    sentence = (
        f"{facts}. Their cross-entropy is 0, and its gradient is lost in rounding. The attacks "
        "here maximize the log-odds, which do not saturate. In libraries that maximize the "
        "cross-entropy, the reported accuracy is too high."
    )
    return Outcome(False, sentence, figures)


def hidden(case: Case) -> Outcome:
    """Counts the saturated values of bounded activations and of the last layer's input."""
    if not isinstance(case.classifier.model, keras.Model):
        return Outcome(None, "The model is not a Keras model, so its layers are not known.")
    if isinstance(case.classifier.model, SmoothedClassifier):
        return Outcome(None, "The layers run once for each vote: check the base model instead.")
    shares = _shares(case)
    if not shares:
        sentence = "The model has no tanh or sigmoid layers, and its features are not bounded."
        return Outcome(True, sentence)
    name, share = max(shares.items(), key=lambda item: round(item[1], 3))
    figures = {f"share_flat_{layer}": each for layer, each in shares.items()}
    facts = f"{share:.1%} of the values of {name} are saturated"
    if share <= _MAX_FLAT_SHARE:
        return Outcome(True, f"{facts}, the largest share of all layers.", figures)
    return Outcome(False, f"{facts}: little or no gradient passes through this layer.", figures)


def _shares(case: Case) -> dict[str, float]:
    """Returns the share of saturated values in each layer with a bounded activation, by its name.

    A final sigmoid is excluded, because attacks bypass it.
    """
    names = [call.name for call in calls_of_one(case.classifier, case.x[:1].astype("float32"))]

    def flat(classifier: Classifier, x: Images, y: Labels, seed: Seed) -> Any:
        """Returns shares of shape `(batch_size, calls)`; -1 for layers that are not bounded."""
        left_out = without_final_activation(classifier.model)
        with backend.seeded(classifier.random_state, seed), left_out:
            return ops.stack([_flat(call, x) for call in layer_calls(classifier, x)], axis=1)

    function = case.classifier.compiled("flat", flat, num_batched=2)
    per_call = case.batched(function).mean(axis=0)
    shares = {n: float(v) for n, v in zip(names, per_call, strict=True) if v >= 0}
    x = case.x.astype("float32")
    last = features(case.classifier, x, batch_size=case.batch_size)[case.examples]
    if abs(last).max() <= 1:
        shares["features"] = float((abs(last) > _FLAT).mean())
    return shares


def _flat(call: LayerCall, x: Images) -> Any:
    """Returns the share of each example's values that are at the ends of the activation's range."""
    activation = getattr(call.layer, "activation", None)
    if activation not in _SYMMETRIC + _POSITIVE:
        return ops.full((ops.shape(x)[0],), -1.0)
    value = ops.cast(call.outputs, "float32")
    value = ops.reshape(value, (ops.shape(x)[0], -1))
    if activation in _POSITIVE:
        value = 2 * value - 1
    return ops.mean(ops.cast(ops.abs(value) > _FLAT, "float32"), axis=1)
