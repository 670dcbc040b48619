"""Projected gradient descent."""

from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from keras_robust import backend, validation
from keras_robust.attacks.attack import Attack
from keras_robust.ops import (
    log_odds_against,
    margin,
    projection,
    random_in_ball,
    steepest_direction,
)


@keras.saving.register_keras_serializable(package="keras_robust")
class PGD(Attack):
    """Perturbs inputs by projected gradient ascent on the loss.

    From `x_0`, `x` itself or a random point of the ball around it,

        x_i = clip(x_{i-1} + alpha * d(grad_x L(x_{i-1}, y)), x - epsilon, x + epsilon)

    for `i = 1, ..., m`, where `L` is the cross-entropy and `d` the steepest direction: `sign(g)`
    for the L-infinity norm, `g / ||g||_2` for L2, where the projection is to the L2 ball. Each
    iterate is clipped to `bounds` too. The last iterate is returned; with restarts, the one
    among the restarts' last iterates that has the largest margin `max_{j != y} z_j - z_y`.
    Restarts end as soon as the whole batch is misclassified.

    Args:
        epsilon: float. Radius of the ball, in units of `x` (8/255 for images in [0, 1]).
        step_size: float. `alpha`, in units of `x`. Defaults to `None`: `2.5 * epsilon /
            num_steps`, so that the whole ball can be crossed.
        num_steps: int. `m`, the number of gradients for each restart. Defaults to `20`.
        norm: `"linf"` or `"l2"`. Defaults to `"linf"`.
        random_start: bool. Whether to start from a point drawn uniformly from the ball, rather
            than from `x`. Defaults to `True`.
        num_restarts: int. How many random starts to try. Defaults to `1`.
        targeted: bool. `False`: `y` holds the true labels, and the attack leads away from them.
            `True`: `y` holds the labels that the attack leads to. Defaults to `False`.
        bounds: pair of floats. Valid range of `x`. Defaults to `(0.0, 1.0)`.
        from_logits: bool. Whether the model returns logits, rather than probabilities.
            Defaults to `True`.

    Call arguments:
        model: Keras model, or a callable `x -> logits`, shape `(batch_size, num_classes)`.
        x: float array or tensor, shape `(batch_size, ...)`, inside `bounds`.
        y: integer labels, shape `(batch_size,)` or `(batch_size, 1)`, or one-hot labels, shape
            `(batch_size, num_classes)`.
        seed: int. The same seed gives the same `x_adv`. Defaults to `None`: a seed from Python's
            `random`, which `keras.utils.set_random_seed` makes reproducible.

    Returns:
        Tensor, same shape and dtype as `x`, inside the ball and `bounds` to the precision of
        that dtype.

    Raises:
        ValueError: if an argument is out of its range, or more than one restart is asked for
            without a random start; when called, if `x`, `y` or the model's outputs are not as
            described above.

    Example:

    >>> import keras, numpy as np, keras_robust as kr
    >>> model = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten(),
    ...                           keras.layers.Dense(10)])
    >>> x, y = np.random.rand(4, 8, 8, 1).astype("float32"), np.array([3, 1, 4, 1])
    >>> attack = kr.attacks.PGD(epsilon=8 / 255, num_steps=20)
    >>> x_adv = attack(model, x, y, seed=0)
    >>> tuple(x_adv.shape)
    (4, 8, 8, 1)

    Departure from the papers: the gradient is not that of the cross-entropy but of
    `m = log sum_{j != y} exp(z_j) - z_y`, of which cross-entropy is the increasing function
    `log(1 + exp(m))`. Both have the same direction for each example, so the iterates are the
    same; but where the softmax saturates, the gradient of the cross-entropy underflows to 0 and
    the attack would stand still.

    Reference:

    - [Madry et al., 2018](https://arxiv.org/abs/1706.06083), section 2.1
    - Xu et al., Improve Adversarial Robustness via Weight Penalization on Classification Layer,
      section 2.2
    """

    def __init__(
        self,
        epsilon: float,
        step_size: float | None = None,
        num_steps: int = 20,
        norm: str = "linf",
        random_start: bool = True,
        num_restarts: int = 1,
        targeted: bool = False,
        bounds: tuple[float, float] = (0.0, 1.0),
        from_logits: bool = True,
    ) -> None:
        super().__init__(targeted=targeted, bounds=bounds, from_logits=from_logits)
        self.epsilon = validation.check_number("epsilon", epsilon)
        if step_size is not None:
            step_size = validation.check_number("step_size", step_size, exclusive=True)
        self.step_size = step_size
        self.num_steps = validation.check_count("num_steps", num_steps)
        self.norm = validation.check_choice("norm", norm, ("linf", "l2"))
        self.random_start = bool(random_start)
        self.num_restarts = validation.check_count("num_restarts", num_restarts)
        if self.num_restarts > 1 and not self.random_start:
            raise ValueError(
                "Argument `num_restarts` must be 1 without a random start: every restart would "
                f"be the same. Received: num_restarts={num_restarts}, random_start=False"
            )

    def generate(self, logits: Callable[[Any], Any], x: Any, y: Any, seed: Any) -> Any:
        sign = -1.0 if self.targeted else 1.0

        def loss(z: Any) -> Any:
            return sign * log_odds_against(logits(z), y)

        def ascend(restart: Any) -> Any:
            return self.ascend(loss, x, self.start(x, backend.fold_in(seed, restart)))

        best = ascend(0)
        if self.num_restarts == 1:
            return best

        def signed_margin(x_adv: Any) -> Any:
            return sign * margin(logits(x_adv), y)

        def some_stand(restart: Any, best: Any, best_margin: Any) -> Any:
            return ops.any(best_margin <= 0)

        def try_again(restart: Any, best: Any, best_margin: Any) -> Any:
            x_adv = ascend(restart)
            new_margin = signed_margin(x_adv)
            better = new_margin > best_margin
            chosen = ops.where(ops.reshape(better, (-1,) + (1,) * (len(x.shape) - 1)), x_adv, best)
            return restart + 1, chosen, ops.maximum(new_margin, best_margin)

        return ops.while_loop(
            some_stand,
            try_again,
            (1, best, signed_margin(best)),
            maximum_iterations=self.num_restarts - 1,
        )[1]

    def ascend(self, loss: Callable[[Any], Any], x: Any, start: Any) -> Any:
        """Climbs `loss`, a function of images with one value per example, from `start`.

        The result is in the ball around `x`; `start` need not be.
        """
        step_size = self.step_size
        if step_size is None:
            step_size = 2.5 * self.epsilon / self.num_steps
        project = projection(x, self.epsilon, self.norm, self.bounds)

        def total_loss(z: Any) -> Any:
            return ops.sum(loss(z))

        def step(_: Any, x_adv: Any) -> Any:
            gradient = backend.input_gradient(total_loss, x_adv)
            return project(x_adv + step_size * steepest_direction(gradient, self.norm))

        return ops.fori_loop(0, self.num_steps, step, start)

    def start(self, x: Any, seed: Any) -> Any:
        """Where the ascent begins: a random point of the ball, or `x`."""
        if not self.random_start:
            return x
        project = projection(x, self.epsilon, self.norm, self.bounds)
        return project(random_in_ball(x, self.epsilon, self.norm, seed))

    def get_config(self) -> dict[str, Any]:
        return {
            "epsilon": self.epsilon,
            "step_size": self.step_size,
            "num_steps": self.num_steps,
            "norm": self.norm,
            "random_start": self.random_start,
            "num_restarts": self.num_restarts,
            **super().get_config(),
        }
