"""Fast gradient sign method."""

from collections.abc import Callable
from typing import Any

import keras

from keras_robust.attacks.pgd import PGD


@keras.saving.register_keras_serializable(package="keras_robust")
class FGSM(PGD):
    """Perturbs inputs by one step along the loss's steepest direction, to the ball's edge.

        x' = x + epsilon * sign(grad_x L(x, y))

    clipped to `bounds`. For the L2 norm the sign is replaced by `g / ||g||_2`. It is
    `kr.attacks.PGD` with one step of size `epsilon` and no random start.

    A single step tests little: a model that withstands FGSM and not PGD has learnt to hide its
    gradient. Use it beside `kr.attacks.PGD`, not instead.

    Args:
        epsilon: float. Radius of the ball, in units of `x` (8/255 for images in [0, 1]).
        norm: `"linf"` or `"l2"`. Defaults to `"linf"`.
        targeted: bool. `False`: `y` holds the true labels, and the attack leads away from them.
            `True`: `y` holds the labels that the attack leads to. Defaults to `False`.
        loss: `"ce"`, `"margin"` or `"dlr"`, as in `kr.attacks.PGD`. Defaults to `"ce"`.
        bounds: pair of floats. Valid range of `x`. Defaults to `(0.0, 1.0)`.
        from_logits: bool. Whether the model returns logits, rather than probabilities.
            Defaults to `True`.
        objective: callable `(model, x, y) -> values`, what to differentiate instead of the
            model: see `kr.attacks.Attack`. Defaults to `None`.
        num_samples: int. How many draws of a random model each gradient is averaged over.
            Defaults to `1`.

    Call arguments, returns, raises: as `kr.attacks.PGD`. `seed` changes nothing.

    Example:

    >>> import keras_robust as kr
    >>> attack = kr.attacks.FGSM(epsilon=0.25)

    Reference:

    - [Goodfellow et al., 2015](https://arxiv.org/abs/1412.6572)
    - Wang and Osher, Graph Interpolating Activation Improves Both Natural and Robust Accuracies
      in Data-Efficient Deep Learning, eq. 14
    """

    step_size_factor = 1.0
    norms = ("linf", "l2")

    def __init__(
        self,
        epsilon: float,
        norm: str = "linf",
        targeted: bool = False,
        loss: str = "ce",
        bounds: tuple[float, float] = (0.0, 1.0),
        from_logits: bool = True,
        objective: Callable[[Any, Any, Any], Any] | None = None,
        num_samples: int = 1,
    ) -> None:
        super().__init__(
            epsilon,
            num_steps=1,
            norm=norm,
            random_start=False,
            targeted=targeted,
            loss=loss,
            bounds=bounds,
            from_logits=from_logits,
            objective=objective,
            num_samples=num_samples,
        )

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        for name in ("step_size", "num_steps", "random_start", "num_restarts"):
            del config[name]
        return config
