"""What to differentiate instead of a WNLL head."""

from typing import Any

import keras

from keras_robust import validation
from keras_robust.model.classifier import Classifier
from keras_robust.model.layers import HasSurrogate, all_layers
from keras_robust.model.patching import attacked_as

SURROGATES = ("linear", "straight_through", "exact", "soft_neighbors")


@keras.saving.register_keras_serializable(package="keras_robust")
class WNLLSurrogate:
    """An `objective`: attacks a model with a `kr.layers.WNLLHead` through another gradient.

    The exact gradient of the graph interpolation is shattered: each neighbour that enters or
    leaves a list makes it jump. These lead an attack past that; success is judged on the model.

    - `"linear"`: the linear branch z, as if there were no WNLL branch.
    - `"straight_through"`: the gradient of the loss at `log u`, handed to the linear branch (what
      the papers attack with).
    - `"exact"`: u itself, whatever the head's own `gradient`. Use it with `loss="margin"`: the
      cross-entropy of a u that is nearly 0 or 1 saturates.
    - `"soft_neighbors"`: `z_c = log sum_{y of class c} exp(-||h - y||^2 / sigma^2)` over the whole
      template, without lists of neighbours and without the other queries; `sigma` is the distance
      to the n-th neighbour, held fixed.

    Args:
        surrogate: one of the above.
        from_logits: bool. As of the attack. Defaults to `True`.

    Raises:
        ValueError: if `surrogate` is none of them; when called, if the model has no WNLL head.

    Example:

    >>> import keras_robust as kr
    >>> attack = kr.attacks.PGD(0.1, objective=kr.attacks.WNLLSurrogate("soft_neighbors"))

    Reference:

    - Wang et al., Adversarial Defense via Data Dependent Activation Function and Total Variation
      Minimization, eq. 14
    - [Tramer et al., 2020](https://arxiv.org/abs/2002.08347)
    """

    def __init__(self, surrogate: str, from_logits: bool = True) -> None:
        self.surrogate = validation.check_choice("surrogate", surrogate, SURROGATES)
        self.from_logits = bool(from_logits)

    def __call__(self, model: Any, x: Any, y: Any) -> Any:
        if not any(isinstance(layer, HasSurrogate) for layer in all_layers(model)):
            raise ValueError(
                "The model has no `keras_robust.layers.WNLLHead` to find a surrogate for. "
                f"Received: model={model!r}"
            )
        with attacked_as(model, self.surrogate):
            return Classifier.of(model).logits(x, self.from_logits)

    def get_config(self) -> dict[str, Any]:
        return {"surrogate": self.surrogate, "from_logits": self.from_logits}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "WNLLSurrogate":
        return cls(**config)

    def __repr__(self) -> str:
        return f"WNLLSurrogate({self.surrogate!r}, from_logits={self.from_logits!r})"
