"""Whether the model works where its functions are flat."""

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

# In float32 a softmax is exactly 1 from a margin of about 17 on: ordinary networks reach it on
# some images, not on most.
_MAX_CERTAIN_SHARE = 0.5
# |tanh(h)| > 0.999 from |h| = 3.8 on, where the slope is below 0.002.
_FLAT = 0.999
_MAX_FLAT_SHARE = 0.5
_SYMMETRIC = (keras.activations.tanh, keras.activations.hard_tanh, ops.tanh, ops.hard_tanh)
_POSITIVE = (
    keras.activations.sigmoid, keras.activations.hard_sigmoid, ops.sigmoid, ops.hard_sigmoid,
)  # fmt: skip


def logits(case: Case) -> Outcome:
    """Examples whose softmax is exactly 1 in float32, and their cross-entropy 0."""
    share = float(np.mean(case.probabilities().max(axis=1) == 1))
    figures = {"share_certain": share}
    facts = f"The softmax is exactly 1 in float32 for {share:.1%} of the examples"
    if share <= _MAX_CERTAIN_SHARE:
        return Outcome(True, f"{facts}.", figures)
    sentence = (
        f"{facts}: their cross-entropy is 0, and its gradient has lost its digits. Attacks here "
        "climb the log-odds, which do not saturate; libraries that climb the cross-entropy report "
        "too high an accuracy."
    )
    return Outcome(False, sentence, figures)


def hidden(case: Case) -> Outcome:
    """Units of bounded activations, and of the last layer's input, at the end of their range."""
    if not isinstance(case.classifier.model, keras.Model):
        return Outcome(None, "The model is no Keras model: its layers are not known.")
    if isinstance(case.classifier.model, SmoothedClassifier):
        return Outcome(None, "The layers run once for each vote: look at the model that votes.")
    shares = _shares(case)
    if not shares:
        return Outcome(True, "The model has no tanh or sigmoid, and its features are not bounded.")
    name, share = max(shares.items(), key=lambda item: round(item[1], 3))
    figures = {f"share_flat_{layer}": each for layer, each in shares.items()}
    facts = f"{share:.1%} of the values of {name} are at the flat ends of its activation"
    if share <= _MAX_FLAT_SHARE:
        return Outcome(True, f"{facts}, and fewer elsewhere.", figures)
    return Outcome(False, f"{facts}: little or no gradient passes through it.", figures)


def _shares(case: Case) -> dict[str, float]:
    """The share of flat values in each bounded layer, by its name.

    A sigmoid that ends the model is none: attacks leave it out.
    """
    names = [call.name for call in calls_of_one(case.classifier, case.x[:1].astype("float32"))]

    def flat(classifier: Classifier, x: Any, y: Any, seed: Any) -> Any:
        """Shape `(batch_size, calls)`; -1 for layers that are not bounded."""
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


def _flat(call: LayerCall, x: Any) -> Any:
    """The share of each example's values that are at the ends of the activation's range."""
    activation = getattr(call.layer, "activation", None)
    if activation not in _SYMMETRIC + _POSITIVE:
        return ops.full((ops.shape(x)[0],), -1.0)
    value = ops.cast(call.outputs, "float32")
    value = ops.reshape(value, (ops.shape(x)[0], -1))
    if activation in _POSITIVE:
        value = 2 * value - 1
    return ops.mean(ops.cast(ops.abs(value) > _FLAT, "float32"), axis=1)
