"""Projected gradient descent."""

from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from keras_robust import scheduled, validation
from keras_robust.attacks.attack import Attack
from keras_robust.attacks.problem import Problem
from keras_robust.attacks.result import RoundResult
from keras_robust.model.classifier import Classifier
from keras_robust.ops.balls import dimensions, movable, projection, random_in_ball, steepest_step
from keras_robust.ops.logits import dlr, log_odds_against, margin
from keras_robust.types import Images, Objective, Scheduled, Seed, Tensor

# Losses to maximise, by their names in the literature.
LOSSES = {"ce": log_odds_against, "margin": margin, "dlr": dlr}
# Fraction of the values that a step in the L1 norm changes, unless the step is too long for them.
_L1_FRACTION = 0.01


@keras.saving.register_keras_serializable(package="keras_robust")
class PGD(Attack):
    """Perturbs inputs by projected gradient ascent on the loss.

    From `x_0`, which is `x` or a random point of the ball around it, the attack computes

        x_i = clip(x_{i-1} + alpha * d(grad_x L(x_{i-1}, y)), x - epsilon, x + epsilon)

    for `i = 1, ..., m`, where `L` is the loss and `d` the steepest direction. Each iterate is also
    clipped to `bounds`. `d` and the projection depend on the norm:

    - L-infinity: `d` is `sign(g)`, and the projection is as in the formula.
    - L2: `d` is `g / ||g||_2`, and the projection is to the L2 ball.
    - L1: The steepest direction would change a single value. Instead, `d` changes the 1% of all
      values that have the largest `|g_i|`, all by the same amount, `sign(g_i) / k` for `k` values
      (Tramer and Boneh, 2019). `k` is larger if a value would otherwise have to move further than
      the range of `bounds`. Values at the bound that `g_i` points to are not counted. If their
      `|g_i|` is as large, they are pushed equally far beyond the bound, so that the projection
      leaves them there. The projection is the nearest point, in L2, of the intersection of the L1
      ball and `bounds`.

    The attack returns the last iterate. With restarts, it restarts each example until it is
    misclassified, and returns the last iterate of the restart with the largest margin
    `max_{j != y} z_j - z_y`.

    Args:
        epsilon: float, or array that broadcasts to one example. Radius of the ball, in units of `x`
            (8/255 for images in [0, 1]). In a loss,
            `epsilon` and `step_size` may also be a `keras.Variable` or a schedule.
        step_size: float. `alpha`, in units of `x`. Defaults to `None`: `2.5 * epsilon / num_steps`,
            which is enough to cross the whole ball.
        num_steps: int. `m`, the number of gradients for each restart. Defaults to `20`.
        norm: `"linf"`, `"l2"` or `"l1"`. Defaults to `"linf"`.
        random_start: bool. Whether to start from a point drawn uniformly from the ball instead of
            `x`. Defaults to `True`.
        num_restarts: int. Number of random starts. Defaults to `1`.
        targeted: bool. If `False`, `y` holds the true labels, and the attack moves predictions away
            from them. If `True`, `y` holds the target labels, and the attack moves predictions
            towards them. Defaults to `False`.
        loss: loss to maximise. `"ce"`: the cross-entropy. `"margin"`: `max_{j != y} z_j - z_y`.
            `"dlr"`: the margin divided by the difference between the largest and the third largest
            logit. The gradients of all three keep their direction if the logits are multiplied by a
            large constant. Defaults to `"ce"`.
        bounds: pair of floats, or of arrays that broadcast to one example. Valid range of `x`.
            `None` means no bound. Defaults to `(0.0, 1.0)`.
        from_logits: bool. Whether the model returns logits rather than probabilities. Defaults to
            `True`.
        objective: callable `(model, x, y) -> values` that the attack differentiates instead of the
            model; see `kr.attacks.Attack`. Defaults to `None`: the model.
        num_samples: int. Number of draws of a random model over which each gradient is averaged.
            Defaults to `1`.

    Call arguments:
        model: Keras model, or a callable `x -> logits`, shape `(batch_size, num_classes)`.
        x: float array or tensor, shape `(batch_size, ...)`, inside `bounds`.
        y: integer labels, shape `(batch_size,)` or `(batch_size, 1)`, or one-hot labels, shape
            `(batch_size, num_classes)`.
        seed: int. The same seed gives the same `x_adv`. Defaults to `None`: a seed from Python's
            `random`, which `keras.utils.set_random_seed` makes reproducible.
        mask: array or tensor of 0 and 1 that broadcasts to `x`. The attack changes only the values
            where it is 1. Defaults to `None`: all values.

    Returns:
        Tensor, same shape and dtype as `x`, inside the ball and `bounds` to the precision of that
        dtype. Examples on which the attack fails keep their original image.

    Raises:
        ValueError: if an argument is out of its range, or `num_restarts` is greater than 1 without
            a random start; when called, if `x`, `y` or the model's outputs are not as described
            above, or if `loss="dlr"` and the model has fewer than 3 classes.

    Example:

    >>> import keras, numpy as np, keras_robust as kr
    >>> model = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten(),
    ...                           keras.layers.Dense(10)])
    >>> x, y = np.random.rand(4, 8, 8, 1).astype("float32"), np.array([3, 1, 4, 1])
    >>> attack = kr.attacks.PGD(epsilon=8 / 255, num_steps=20)
    >>> x_adv = attack(model, x, y, seed=0)
    >>> tuple(x_adv.shape)
    (4, 8, 8, 1)

    Departure from the papers: for `"ce"`, the attack does not differentiate the cross-entropy but
    `m = log sum_{j != y} exp(z_j) - z_y`. The cross-entropy is `log(1 + exp(m))`, an increasing
    function of `m`. For each example, both gradients therefore have the same direction, and the
    iterates are the same. Where the softmax saturates, however, the gradient of the cross-entropy
    underflows to 0, and the attack would stop moving.

    Reference:

    - [Madry et al., 2018](https://arxiv.org/abs/1706.06083), section 2.1
    - Xu et al., Improve Adversarial Robustness via Weight Penalization on Classification Layer,
      section 2.2
    - [Tramer and Boneh, 2019](https://arxiv.org/abs/1904.13000), section 3.1 and appendix A (L1)
    - [Croce and Hein, 2021](https://arxiv.org/abs/2103.01208), section 2 (the projection in L1)
    """

    # Default total length of all steps, in units of `epsilon`.
    step_size_factor = 2.5
    norms: tuple[str, ...] = ("linf", "l2", "l1")

    def __init__(
        self,
        epsilon: Scheduled,
        step_size: Scheduled | None = None,
        num_steps: int = 20,
        norm: str = "linf",
        random_start: bool = True,
        num_restarts: int = 1,
        targeted: bool = False,
        loss: str = "ce",
        bounds: tuple[float, float] = (0.0, 1.0),
        from_logits: bool = True,
        objective: Objective | None = None,
        num_samples: int = 1,
    ) -> None:
        super().__init__(
            targeted=targeted,
            bounds=bounds,
            from_logits=from_logits,
            objective=objective,
            num_samples=num_samples,
        )
        self.epsilon = scheduled.check_scheduled("epsilon", epsilon)
        if step_size is not None:
            step_size = scheduled.check_scheduled("step_size", step_size, exclusive=True)
        self.step_size = step_size
        self.num_steps = validation.check_count("num_steps", num_steps)
        self.norm = validation.check_choice("norm", norm, self.norms)
        self.random_start = bool(random_start)
        self.num_restarts = validation.check_count("num_restarts", num_restarts)
        self.loss = validation.check_choice("loss", loss, LOSSES)
        if self.num_restarts > 1 and not self.random_start:
            raise ValueError(
                "Argument `num_restarts` must be 1 without a random start: every restart would "
                f"be the same. Received: num_restarts={num_restarts}, random_start=False"
            )

    def num_rounds(self, num_classes: int) -> int:
        return self.num_restarts

    def check_classifier(self, classifier: Classifier, x: Images) -> None:
        super().check_classifier(classifier, x)
        if self.loss == "dlr" and classifier.num_classes < 3:
            raise ValueError(
                'Argument `loss` must be "ce" or "margin" for a model of 2 classes, because "dlr" '
                f"uses the third largest logit. Received: loss={self.loss!r}"
            )

    @property
    def given(self) -> list[str]:
        return ["epsilon", "step_size"]

    @property
    def data(self) -> dict[str, Any]:
        epsilon = scheduled.number("epsilon", self.epsilon)
        if self.step_size is None:
            return {
                "epsilon": epsilon,
                "step_size": self.step_size_factor * epsilon / self.num_steps,
            }
        return {"epsilon": epsilon, "step_size": scheduled.number("step_size", self.step_size)}

    def generate(
        self, problem: Problem, x: Images, start: Tensor, index: Tensor, seed: Seed
    ) -> RoundResult:
        def gradient(z: Tensor, step: Tensor) -> Tensor:
            return problem.at(step).gradient(LOSSES[self.loss], z)

        num_gradients = self.num_steps * self.num_samples
        return RoundResult(self.ascend(gradient, x, self.start(x, seed)), num_gradients)

    def ascend(self, gradient: Callable[[Any, Any], Any], x: Images, start: Tensor) -> Tensor:
        """Takes `num_steps` steps from `start` along `gradient`.

        Args:
            gradient: function of the images and the index of the step.
            x: tensor. The original images.
            start: tensor. Images to start from. They may lie outside the ball.

        Returns:
            Tensor. Images in the ball around `x`.
        """
        project = projection(x, self.epsilon, self.norm, self.bounds)
        count = 1
        if self.norm == "l1":
            longest = ops.max(self.effective_step_size)
            count = ops.maximum(_L1_FRACTION * dimensions(x, self.bounds), longest / self.width)

        def step(number: Tensor, x_adv: Images) -> Tensor:
            slope, size = gradient(x_adv, number), self.effective_step_size
            can_move = movable(slope, x_adv, self.epsilon, self.bounds)
            return project(x_adv + steepest_step(slope, size, self.norm, count, can_move))

        return ops.fori_loop(0, self.num_steps, step, start)

    @property
    def effective_step_size(self) -> Tensor:
        """`step_size`, or its default."""
        default = self.step_size_factor * self.epsilon / self.num_steps
        return default if self.step_size is None else self.step_size

    def start(self, x: Images, seed: Seed) -> Tensor:
        """Returns the starting point of the ascent: a random point of the ball, or `x`."""
        if not self.random_start:
            return x
        project = projection(x, self.epsilon, self.norm, self.bounds)
        return project(random_in_ball(x, self.epsilon, self.norm, seed, self.bounds))
