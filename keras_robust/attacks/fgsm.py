"""Fast gradient sign method."""

import keras

from keras_robust.attacks.pgd import PGD
from keras_robust.types import Objective, Scheduled


@keras.saving.register_keras_serializable(package="keras_robust")
class FGSM(PGD):
    """Perturbs inputs by one gradient step to the edge of the ball.

        x' = x + epsilon * sign(grad_x L(x, y))

    The result is clipped to `bounds`. For the L2 norm, `g / ||g||_2` replaces the sign of the
    gradient `g`. FGSM is `kr.attacks.PGD` with one step of size `epsilon` and no random start.

    Args:
        epsilon: float, or array that broadcasts to one example. Radius of the ball, in units of `x`
            (8/255 for images in [0, 1]).
        norm: `"linf"` or `"l2"`. Defaults to `"linf"`.
        targeted: bool. If `False`, `y` holds the true labels, and the attack moves predictions away
            from them. If `True`, `y` holds the target labels, and the attack moves predictions
            towards them. Defaults to `False`.
        loss: `"ce"`, `"margin"` or `"dlr"`, as in `kr.attacks.PGD`. Defaults to `"ce"`.
        bounds: pair of floats, or of arrays that broadcast to one example. Valid range of `x`.
            `None` means no bound. Defaults to `(0.0, 1.0)`.
        from_logits: bool. Whether the model returns logits rather than probabilities. Defaults to
            `True`.
        objective: callable `(model, x, y) -> values` that the attack differentiates instead of the
            model; see `kr.attacks.Attack`. Defaults to `None`: the model.
        num_samples: int. Number of draws of a random model over which each gradient is averaged.
            Defaults to `1`.

    Call arguments:
        Same as `kr.attacks.PGD`. `seed` only has an effect on random models.

    Returns:
        Same as `kr.attacks.PGD`.

    Raises:
        ValueError: same as `kr.attacks.PGD`.

    Example:

    >>> import keras_robust as kr
    >>> attack = kr.attacks.FGSM(epsilon=0.25)

    A single step is a weak test. A model that resists FGSM but not PGD has learnt to hide its
    gradient. Use FGSM in addition to `kr.attacks.PGD`, not instead of it.

    Reference:

    - [Goodfellow et al., 2015](https://arxiv.org/abs/1412.6572)
    - Wang and Osher, Graph Interpolating Activation Improves Both Natural and Robust Accuracies in
      Data-Efficient Deep Learning, eq. 14
    """

    step_size_factor = 1.0
    norms = ("linf", "l2")

    def __init__(
        self,
        epsilon: Scheduled,
        norm: str = "linf",
        targeted: bool = False,
        loss: str = "ce",
        bounds: tuple[float, float] = (0.0, 1.0),
        from_logits: bool = True,
        objective: Objective | None = None,
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
