"""Momentum iterative method."""

from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from keras_robust import validation
from keras_robust.attacks.pgd import PGD
from keras_robust.ops.balls import per_example, projection, steepest_step
from keras_robust.types import Images, Objective, Scheduled, Tensor


@keras.saving.register_keras_serializable(package="keras_robust")
class MIM(PGD):
    """Perturbs inputs by gradient steps with momentum that start from the image itself.

    From `g_0 = 0` and `x_0 = x`, the attack computes

        g_{t+1} = mu * g_t + grad_x L(x_t, y) / ||grad_x L(x_t, y)||_1
        x_{t+1} = clip(x_t + alpha * d(g_{t+1}), x - epsilon, x + epsilon)

    where `d` is the steepest direction: `sign(g)` for the L-infinity norm, `g / ||g||_2` for L2.
    Each iterate is also clipped to `bounds`. Momentum stabilises the direction of the steps. The
    adversarial examples transfer better to other models than those of PGD.

    Args:
        epsilon: float, or array that broadcasts to one example. Radius of the ball, in units of `x`
            (8/255 for images in [0, 1]).
        step_size: float. `alpha`, in units of `x`. The paper uses `epsilon / num_steps`. Defaults
            to `None`: `2.5 * epsilon / num_steps`.
        num_steps: int. Number of gradients. Defaults to `20`.
        decay: float. `mu`. With 0, the attack is PGD without a random start. Defaults to `1.0`.
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
    >>> attack = kr.attacks.MIM(epsilon=8 / 255, num_steps=10)

    Reference:

    - [Dong et al., 2018](https://arxiv.org/abs/1710.06081), eqs. 6 and 7
    """

    norms = ("linf", "l2")

    def __init__(
        self,
        epsilon: Scheduled,
        step_size: Scheduled | None = None,
        num_steps: int = 20,
        decay: float = 1.0,
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
            step_size=step_size,
            num_steps=num_steps,
            norm=norm,
            random_start=False,
            targeted=targeted,
            loss=loss,
            bounds=bounds,
            from_logits=from_logits,
            objective=objective,
            num_samples=num_samples,
        )
        self.decay = validation.check_number("decay", decay)

    def ascend(self, gradient: Callable[[Any, Any], Any], x: Images, start: Tensor) -> Tensor:
        project = projection(x, self.epsilon, self.norm, self.bounds)

        def step(number: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
            x_adv, momentum = state
            momentum = self.decay * momentum + _unit_l1(gradient(x_adv, number))
            move = steepest_step(momentum, self.effective_step_size, self.norm)
            return project(x_adv + move), momentum

        return ops.fori_loop(0, self.num_steps, step, (start, ops.zeros_like(start)))[0]


def _unit_l1(gradient: Tensor) -> Tensor:
    """Divides the gradient of each example by its L1 norm."""
    # Scaling by the largest entry first keeps the sum from underflowing or overflowing.
    flat = ops.reshape(ops.abs(gradient), (ops.shape(gradient)[0], -1))
    largest = ops.max(flat, axis=1)
    largest = per_example(ops.where(largest > 0, largest, ops.ones_like(largest)), gradient)
    scaled = gradient / largest
    total = ops.sum(ops.reshape(ops.abs(scaled), (ops.shape(gradient)[0], -1)), axis=1)
    return scaled / per_example(ops.maximum(total, 1.0), gradient)
