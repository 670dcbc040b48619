"""Surrogate gradients for attacks on a WNLL head."""

from typing import Any

import keras

from keras_robust import validation
from keras_robust.model.classifier import Classifier
from keras_robust.model.layers import HasSurrogate, all_layers
from keras_robust.model.patching import attacked_as
from keras_robust.types import Config, Images, Labels, Model, Tensor

SURROGATES = ("linear", "straight_through", "exact", "soft_neighbors")


@keras.saving.register_keras_serializable(package="keras_robust")
class WNLLSurrogate:
    """Attacks a model with a `kr.layers.WNLLHead` through another gradient than the head's own.

    Pass it to an attack as its `objective`. The exact gradient of the graph interpolation is
    shattered: it jumps whenever a neighbour enters or leaves a list. The other gradients lead
    attacks past these jumps. Success is judged on the model itself.

    - `"linear"`: the linear branch z, without the WNLL branch.
    - `"straight_through"`: the gradient of the loss at `log u`, passed on to the linear branch. The
      papers attack with this gradient.
    - `"exact"`: u itself, whatever the head's own `gradient` is. Use it with `loss="margin"`,
      because the cross-entropy saturates if u is nearly 0 or 1.
    - `"soft_neighbors"`: `z_c = log sum_{y of class c} exp(-||h - y||^2 / sigma^2)` over the whole
      template, without lists of neighbours and without the other queries. `sigma` is the distance
      to the n-th neighbour and is held constant.

    Args:
        surrogate: string. One of the names above.
        from_logits: bool. Same as the attack's `from_logits`. Defaults to `True`.

    Raises:
        ValueError: if `surrogate` is not one of the names above; when called, if the model has no
            WNLL head.

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

    def __call__(self, model: Model, x: Images, y: Labels) -> Tensor:
        if not any(isinstance(layer, HasSurrogate) for layer in all_layers(model)):
            raise ValueError(
                "`WNLLSurrogate` cannot be used: the model has no `keras_robust.layers.WNLLHead`. "
                f"Received: model={model!r}"
            )
        with attacked_as(model, self.surrogate):
            return Classifier.of(model).logits(x, self.from_logits)

    def get_config(self) -> Config:
        return {"surrogate": self.surrogate, "from_logits": self.from_logits}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "WNLLSurrogate":
        return cls(**config)

    def __repr__(self) -> str:
        return f"WNLLSurrogate({self.surrogate!r}, from_logits={self.from_logits!r})"
