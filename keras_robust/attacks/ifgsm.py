"""Iterative fast gradient sign method."""

import keras

from keras_robust.attacks.pgd import PGD
from keras_robust.types import Objective, Scheduled


@keras.saving.register_keras_serializable(package="keras_robust")
class IFGSM(PGD):
    """Perturbs inputs by signed gradient steps that start from the image itself.

    From `x^(0) = x`, the attack computes, for `m = 1, ..., M`,

        x^(m) = Clip_{x, epsilon}(x^(m-1) + alpha * sign(grad_x L(x^(m-1), y)))
        Clip_{x, epsilon}(x') = min(1, x + epsilon, max(0, x - epsilon, x'))

    where 0 and 1 stand for `bounds`. IFGSM is `kr.attacks.PGD` in the L-infinity norm without a
    random start.

    Args:
        epsilon: float, or array that broadcasts to one example. Radius of the ball, in units of `x`
            (8/255 for images in [0, 1]).
        step_size: float. `alpha`, in units of `x`. Wang and Osher use 1/255 with `epsilon=8/255` on
            CIFAR, and 0.01 with `epsilon=0.3` on MNIST. Defaults to `None`:
            `2.5 * epsilon / num_steps`.
        num_steps: int. `M`, the number of gradients. Defaults to `20`.
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
    >>> attack = kr.attacks.IFGSM(epsilon=0.3, step_size=0.01, num_steps=40)

    Reference:

    - Wang and Osher, Graph Interpolating Activation Improves Both Natural and Robust Accuracies in
      Data-Efficient Deep Learning, eq. 16
    - [Kurakin et al., 2017](https://arxiv.org/abs/1607.02533)
    """

    def __init__(
        self,
        epsilon: Scheduled,
        step_size: Scheduled | None = None,
        num_steps: int = 20,
        targeted: bool = False,
        loss: str = "ce",
        bounds: tuple[float, float] = (0.0, 1.0),
        from_logits: bool = True,
        objective: Objective | None = None,
        num_samples: int = 1,
    ) -> None:
        super().__init__(
            epsilon,
            step_size=step_size,
            num_steps=num_steps,
            random_start=False,
            targeted=targeted,
            loss=loss,
            bounds=bounds,
            from_logits=from_logits,
            objective=objective,
            num_samples=num_samples,
        )
