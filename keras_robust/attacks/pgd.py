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
from keras_robust.ops import (
    dimensions,
    dlr,
    log_odds_against,
    margin,
    movable,
    projection,
    random_in_ball,
    steepest_step,
)

# What can be climbed, by the names that the literature gives it.
LOSSES = {"ce": log_odds_against, "margin": margin, "dlr": dlr}
# The share of the values that a step in the L1 norm changes, if none has to go further than it can.
_SHARE_IN_L1 = 0.01


@keras.saving.register_keras_serializable(package="keras_robust")
class PGD(Attack):
    """Perturbs inputs by projected gradient ascent on the loss.

    From `x_0`, `x` itself or a random point of the ball around it,

        x_i = clip(x_{i-1} + alpha * d(grad_x L(x_{i-1}, y)), x - epsilon, x + epsilon)

    for `i = 1, ..., m`, where `L` is the loss and `d` the steepest direction: `sign(g)` for the
    L-infinity norm, `g / ||g||_2` for L2, where the projection is to the L2 ball. Each iterate is
    clipped to `bounds` too. In L1, where the steepest direction changes one value alone, `d`
    changes the share of 0.01 of all values that has the largest `|g_i|`, all equally far,
    `sign(g_i) / k` for `k` values (Tramer and Boneh, 2019). Values at the bound that `g_i` points
    to are not counted: those with a `|g_i|` as large are pushed as far beyond it, so that the
    projection leaves them there. `k` is larger where a value would have to go further than the
    range of `bounds`. The projection is the nearest point, in L2, of the L1 ball cut with `bounds`.
    The last iterate counts; with restarts, the one among the restarts' last iterates that has the
    largest margin `max_{j != y} z_j - z_y`. An example is restarted until it is misclassified.

    Args:
        epsilon: float. Radius of the ball, in units of `x` (8/255 for images in [0, 1]). In a loss
            it may be a `keras.Variable` or a schedule, as may `step_size`.
        step_size: float. `alpha`, in units of `x`. Defaults to `None`: `2.5 * epsilon /
            num_steps`, so that the whole ball can be crossed.
        num_steps: int. `m`, the number of gradients for each restart. Defaults to `20`.
        norm: `"linf"`, `"l2"` or `"l1"`. Defaults to `"linf"`.
        random_start: bool. Whether to start from a point drawn uniformly from the ball, rather
            than from `x`. Defaults to `True`.
        num_restarts: int. How many random starts to try. Defaults to `1`.
        targeted: bool. `False`: `y` holds the true labels, and the attack leads away from them.
            `True`: `y` holds the labels that the attack leads to. Defaults to `False`.
        loss: what to climb. `"ce"`: the cross-entropy. `"margin"`: `max_{j != y} z_j - z_y`.
            `"dlr"`: the margin divided by the difference of the largest and third largest
            logit. None of them changes its direction where the logits are multiplied by a large
            constant. Defaults to `"ce"`.
        bounds: pair of floats. Valid range of `x`. Defaults to `(0.0, 1.0)`.
        from_logits: bool. Whether the model returns logits, rather than probabilities.
            Defaults to `True`.
        objective: callable `(model, x, y) -> values`, what to differentiate instead of the
            model: see `kr.attacks.Attack`. Defaults to `None`.
        num_samples: int. How many draws of a random model each gradient is averaged over.
            Defaults to `1`.

    Call arguments:
        model: Keras model, or a callable `x -> logits`, shape `(batch_size, num_classes)`.
        x: float array or tensor, shape `(batch_size, ...)`, inside `bounds`.
        y: integer labels, shape `(batch_size,)` or `(batch_size, 1)`, or one-hot labels, shape
            `(batch_size, num_classes)`.
        seed: int. The same seed gives the same `x_adv`. Defaults to `None`: a seed from Python's
            `random`, which `keras.utils.set_random_seed` makes reproducible.

    Returns:
        Tensor, same shape and dtype as `x`, inside the ball and `bounds` to the precision of
        that dtype. An example on which the attack fails keeps its original image.

    Raises:
        ValueError: if an argument is out of its range, or more than one restart is asked for
            without a random start; when called, if `x`, `y` or the model's outputs are not as
            described above, or if `"dlr"` is to be climbed with fewer than 3 classes.

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
    - [Tramer and Boneh, 2019](https://arxiv.org/abs/1904.13000), section 3.1 and appendix A (L1)
    - [Croce and Hein, 2021](https://arxiv.org/abs/2103.01208), section 2 (the projection in L1)
    """

    # How far all steps together lead by default, in units of `epsilon`.
    step_size_factor = 2.5
    norms: tuple[str, ...] = ("linf", "l2", "l1")

    def __init__(
        self,
        epsilon: float,
        step_size: float | None = None,
        num_steps: int = 20,
        norm: str = "linf",
        random_start: bool = True,
        num_restarts: int = 1,
        targeted: bool = False,
        loss: str = "ce",
        bounds: tuple[float, float] = (0.0, 1.0),
        from_logits: bool = True,
        objective: Callable[[Any, Any, Any], Any] | None = None,
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

    def check_classifier(self, classifier: Classifier, x: Any) -> None:
        super().check_classifier(classifier, x)
        if self.loss == "dlr" and classifier.num_classes < 3:
            raise ValueError(
                'Argument `loss` must be "ce" or "margin" for a model of 2 classes: the third '
                f'largest logit is part of "dlr". Received: loss={self.loss!r}'
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

    def generate(self, problem: Problem, x: Any, start: Any, index: Any, seed: Any) -> RoundResult:
        def gradient(z: Any, step: Any) -> Any:
            return problem.at(step).gradient(LOSSES[self.loss], z)

        num_gradients = self.num_steps * self.num_samples
        return RoundResult(self.ascend(gradient, x, self.start(x, seed)), num_gradients)

    def ascend(self, gradient: Callable[[Any, Any], Any], x: Any, start: Any) -> Any:
        """Steps along `gradient`, a function of images and the number of the step, from `start`.

        The result is in the ball around `x`; `start` need not be.
        """
        project = projection(x, self.epsilon, self.norm, self.bounds)
        count = 1
        if self.norm == "l1":
            longest = ops.max(self.effective_step_size)
            count = ops.maximum(_SHARE_IN_L1 * dimensions(x, self.bounds), longest / self.width)

        def step(number: Any, x_adv: Any) -> Any:
            slope, size = gradient(x_adv, number), self.effective_step_size
            can_move = movable(slope, x_adv, self.epsilon, self.bounds)
            return project(x_adv + steepest_step(slope, size, self.norm, count, can_move))

        return ops.fori_loop(0, self.num_steps, step, start)

    @property
    def effective_step_size(self) -> Any:
        """`step_size`, or what it is by default."""
        default = self.step_size_factor * self.epsilon / self.num_steps
        return default if self.step_size is None else self.step_size

    def start(self, x: Any, seed: Any) -> Any:
        """Where the ascent begins: a random point of the ball, or `x`."""
        if not self.random_start:
            return x
        project = projection(x, self.epsilon, self.norm, self.bounds)
        return project(random_in_ball(x, self.epsilon, self.norm, seed, self.bounds))

    def get_config(self) -> dict[str, Any]:
        return {
            "epsilon": scheduled.saved(self.epsilon),
            "step_size": scheduled.saved(self.step_size),
            "num_steps": self.num_steps,
            "norm": self.norm,
            "random_start": self.random_start,
            "num_restarts": self.num_restarts,
            "loss": self.loss,
            **super().get_config(),
        }
