"""Auto-PGD: projected gradient ascent with an adaptive step size."""

from typing import Any

import keras
import numpy as np
from keras import ops

from keras_robust import scheduled, validation
from keras_robust.attacks.attack import Attack
from keras_robust.attacks.auto_ascent import ascend, ascend_in_l1, phases
from keras_robust.attacks.pgd import LOSSES
from keras_robust.attacks.problem import Problem
from keras_robust.attacks.result import RoundResult
from keras_robust.model.classifier import Classifier
from keras_robust.ops.balls import projection, random_in_ball, steepest_direction
from keras_robust.ops.logits import dlr_targeted, logit_range, of_class, other_classes
from keras_robust.types import Images, Labels, Objective, Scheduled, ScoreLoss, Scores, Seed, Tensor

# Losses for one target class `t`: functions of class scores, `y` and `t`.
TARGETED_LOSSES = {
    "margin_targeted": lambda scores, y, t: of_class(scores, t) - of_class(scores, y),
    "dlr_targeted": dlr_targeted,
}
# How to order the target classes.
_ORDERS = ("score", "distance")
# At most this many classes are ordered by distance.
_NUM_CANDIDATES = 100
_MIN_CLASSES = {"dlr": 3, "dlr_targeted": 4}


@keras.saving.register_keras_serializable(package="keras_robust")
class APGD(Attack):
    """Perturbs inputs by Auto-PGD, which adapts its step size to the progress of the loss.

    From `x_0`, which is `x` or a random point of the ball around it, and `eta = 2 * epsilon`,

        z_{k+1} = P(x_k + eta * d(grad_x L(x_k, y)))
        x_{k+1} = P(x_k + alpha * (z_{k+1} - x_k) + (1 - alpha) * (x_k - x_{k-1}))

    for `k = 0, ..., N - 1` and `alpha = 0.75` (1 in the first step). `L` is the loss, `d` the
    steepest direction (`sign(g)` or `g / ||g||_2`), and `P` the projection to the ball and
    `bounds`. `x_max` is the iterate with the largest loss so far, `L_max`. The checkpoints are
    `w_j = ceil(p_j * N)`, with `p_0 = 0`, `p_1 = 0.22` and
    `p_{j+1} = p_j + max(p_j - p_{j-1} - 0.03, 0.06)`. At a checkpoint, the step size is halved and
    the ascent continues from `x_max`, for each example for which

    1. the loss has risen in fewer than `rho * (w_j - w_{j-1})` of the steps since `w_{j-1}`, or
    2. `eta` was not halved at `w_{j-1}`, and `L_max` has not risen since.

    In L1 (Croce and Hein, 2021), each step changes the `s` values with the largest `|g_i|`:

        x_{k+1} = P(x_k + eta * d_s(grad_x L(x_k, y))),    d_s = sign(g_i) / s for these values

    It starts with `eta = epsilon` and `s = 0.2 * dim(x)`. At a checkpoint, every `N // 25` steps,
    `s` becomes `||x_max - x||_0 // 1.5`. If the number of changed values, `||x_max - x||_0`, is
    less than 0.95 times that at the previous checkpoint, `eta` is reset to `epsilon`, and the
    ascent continues from `x_max`. Otherwise `eta` is divided by 1.5, down to `epsilon / 10`. The
    first 30% of the steps are taken in the ball of radius `3 * epsilon` and the next 30% in the
    ball of radius `2 * epsilon`. `eta` is larger by the same factor there, and `x_max` is projected
    to the next ball at the end of each phase. `P` is exact, as in `kr.attacks.PGD`.

    The attack returns the iterate with the largest margin `max_{j != y} z_j - z_y` in the ball of
    radius `epsilon`, so a misclassified one if there is any. The step size needs no tuning.

    Args:
        epsilon: float, or array that broadcasts to one example. Radius of the ball, in units of `x`
            (8/255 for images in [0, 1]).
        norm: `"linf"`, `"l2"` or `"l1"`. Defaults to `"linf"`.
        loss: the loss to maximise. `"ce"`, `"margin"` and `"dlr"` are the same as in
            `kr.attacks.PGD`. `"margin_targeted"` is `z_t - z_y` for a target class `t`.
            `"dlr_targeted"` is `z_t - z_y` divided by the difference between the largest logit and
            the mean of the third and fourth largest. The targeted losses try one class `t` after
            the other until the example is misclassified (as any class). Defaults to `"ce"`.
        num_steps: int. `N`, the number of gradients for each restart and class `t`. Defaults to
            `100`.
        num_restarts: int. Number of random starts, for each class `t`. Defaults to `1`.
        num_targets: int. Maximum number of classes `t` that the targeted losses try. Defaults to
            `9`.
        random_start: bool. Whether to start from a point drawn uniformly from the ball rather than
            from `x`. Defaults to `True`.
        rho: float from 0 to 1. Share of steps that must raise the loss. It has no effect in L1.
            Defaults to `0.75`.
        targeted: bool. If `False`, `y` holds the true labels, and the attack moves predictions away
            from them. If `True`, `y` holds the target labels, and the attack moves predictions
            towards them. Defaults to `False`.
        bounds: pair of floats, or of arrays that broadcast to one example. Valid range of `x`.
            `None` means no bound. Defaults to `(0.0, 1.0)`.
        from_logits: bool. Whether the model returns logits rather than probabilities. Defaults to
            `True`.
        objective: callable `(model, x, y) -> values` that the attack differentiates instead of the
            model. See `kr.attacks.Attack`. The targeted losses need class scores. With an
            `objective`, each step also runs the model itself, to see whether it is fooled. Defaults
            to `None`.
        num_samples: int. Number of draws of a random model over which each gradient is averaged.
            Defaults to `1`.
        target_order: the order in which the targeted losses try classes. `"score"` starts with the
            classes most likely at `x`. `"distance"` starts with the class whose boundary would be
            nearest if the model were linear, by `(z_y - z_t) / ||grad_x (z_y - z_t)||` at `x`, in
            the norm dual to that of the ball. It needs a gradient for each class, or for the 100
            most likely classes. Defaults to `"score"`.

    Call arguments:
        model: Keras model, or a callable `x -> logits`, shape `(batch_size, num_classes)`.
        x: float array or tensor, shape `(batch_size, ...)`, inside `bounds`.
        y: integer labels, shape `(batch_size,)` or `(batch_size, 1)`, or one-hot labels, shape
            `(batch_size, num_classes)`.
        seed: int. The same seed gives the same `x_adv`. Defaults to `None`: a seed from Python's
            `random`, which `keras.utils.set_random_seed` makes reproducible.

    Returns:
        Tensor, same shape and dtype as `x`, inside the ball and `bounds` to the precision of that
        dtype. An example on which the attack fails keeps its original image.

    Raises:
        ValueError: if an argument is out of its range, if `num_restarts` is larger than 1 without a
            random start, or if `targeted=True` is combined with a targeted loss, which chooses its
            own classes; when called, if `x`, `y` or the model's outputs are not as described above,
            or if the model has fewer than 3 classes for `"dlr"` or 4 for `"dlr_targeted"`.

    Example:

    >>> import keras, numpy as np, keras_robust as kr
    >>> model = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten(),
    ...                           keras.layers.Dense(10)])
    >>> x, y = np.random.rand(4, 8, 8, 1).astype("float32"), np.array([3, 1, 4, 1])
    >>> attack = kr.attacks.APGD(epsilon=8 / 255, loss="dlr_targeted", num_steps=20)
    >>> tuple(attack(model, x, y, seed=0).shape)
    (4, 8, 8, 1)

    Departures from the paper:

    - Where the ascent continues from `x_max`, it reuses the gradient computed when `x_max` was
      reached. The paper's algorithm takes a step from the old point, drops it, and computes the
      gradient at `x_max` a second time.
    - The paper returns `x_max`, and the authors' code the last misclassified iterate.
    - The log-odds replace the cross-entropy, as in `kr.attacks.PGD`. Both rise in the same steps.
    - The start is drawn from the whole ball. The paper does not specify it, and the authors' code
      draws from the surface of the ball.
    - In L1, the three balls are always used, as in the authors' AutoAttack. By default, the
      authors' APGD alone stays in the ball of radius `epsilon`. Values at the bound that `g_i`
      points to are left out, `s` is rounded down, and the three phases together take `N` gradients.

    Reference:

    - [Croce and Hein, 2020](https://arxiv.org/abs/2003.01690), sections 3 and 4, Algorithm 1
    - [Croce and Hein, 2021](https://arxiv.org/abs/2103.01208), section 3, Algorithm 1 (L1)
    - [Melamed, Yehudai and Shamir, 2024](https://arxiv.org/abs/2407.02240), for
      `target_order="distance"`
    """

    def __init__(
        self,
        epsilon: Scheduled,
        norm: str = "linf",
        loss: str = "ce",
        num_steps: int = 100,
        num_restarts: int = 1,
        num_targets: int = 9,
        random_start: bool = True,
        rho: float = 0.75,
        targeted: bool = False,
        bounds: tuple[float, float] = (0.0, 1.0),
        from_logits: bool = True,
        objective: Objective | None = None,
        num_samples: int = 1,
        target_order: str = "score",
    ) -> None:
        super().__init__(
            targeted=targeted,
            bounds=bounds,
            from_logits=from_logits,
            objective=objective,
            num_samples=num_samples,
        )
        self.epsilon = scheduled.check_scheduled("epsilon", epsilon)
        self.norm = validation.check_choice("norm", norm, ("linf", "l2", "l1"))
        self.loss = validation.check_choice("loss", loss, (*LOSSES, *TARGETED_LOSSES))
        self.num_steps = validation.check_count("num_steps", num_steps)
        self.num_restarts = validation.check_count("num_restarts", num_restarts)
        self.num_targets = validation.check_count("num_targets", num_targets)
        self.random_start = bool(random_start)
        self.rho = validation.check_number("rho", rho, maximum=1.0)
        self.target_order = validation.check_choice("target_order", target_order, _ORDERS)
        if self.num_restarts > 1 and not self.random_start:
            raise ValueError(
                "Argument `num_restarts` must be 1 without a random start: every restart would "
                f"be the same. Received: num_restarts={num_restarts}, random_start=False"
            )
        if self.targeted and loss in TARGETED_LOSSES:
            raise ValueError(
                f"Argument `loss` must be one of {tuple(LOSSES)} when `targeted=True`, since `y` "
                f"already holds the target classes. Received: loss={loss!r}"
            )

    def check_classifier(self, classifier: Classifier, x: Images) -> None:
        super().check_classifier(classifier, x)
        num_classes = classifier.num_classes
        if num_classes < _MIN_CLASSES.get(self.loss, 2):
            raise ValueError(
                'Argument `loss` must be a different loss, such as "margin", for a model of '
                f"{num_classes} classes: {self.loss!r} compares {_MIN_CLASSES[self.loss]} logits. "
                f"Received: loss={self.loss!r}"
            )

    def num_rounds(self, num_classes: int) -> int:
        return self._num_target_classes(num_classes) * self.num_restarts

    def initial_state(self, x: Images) -> tuple[Any, ...]:
        if self.loss not in TARGETED_LOSSES or self.target_order == "score":
            return ()
        return (ops.zeros((ops.shape(x)[0], self.num_targets), dtype="int32"),)

    def generate(
        self, problem: Problem, x: Images, start: Tensor, index: Tensor, seed: Seed, *state: Any
    ) -> RoundResult:
        start, climb, epsilon = x, ascend, self.epsilon
        if self.norm == "l1":
            climb, epsilon = ascend_in_l1, phases(self.num_steps)[0][0] * self.epsilon
        if self.random_start:
            project = projection(x, epsilon, self.norm, self.bounds)
            start = project(random_in_ball(x, epsilon, self.norm, seed, self.bounds))
        if self.loss in TARGETED_LOSSES:
            classes, state, num_gradients, num_evaluations = self._targets(problem, x, index, state)
            place = index % min(self.num_targets, classes.shape[1])
            loss = self._targeted_loss(ops.take(classes, place, axis=1))
        else:
            loss, num_gradients, num_evaluations = LOSSES[self.loss], 0, 0
        x_adv = climb(self, problem, loss, x, start)
        num_gradients, num_evaluations = num_gradients + self.num_steps, num_evaluations + 1
        if self.objective is not None:
            num_evaluations = num_evaluations + self.num_steps
        return RoundResult(
            x_adv, num_gradients * self.num_samples, num_evaluations * self.num_samples, state
        )

    def _targets(
        self, problem: Problem, x: Images, index: Tensor, state: tuple[Tensor, ...]
    ) -> tuple[Any, tuple[Any, ...], Any, Any]:
        """Returns the target classes in order, the new state, and the gradients and passes needed.

        The order by distance is computed in the first round only, and kept in the state.
        """
        if not state:
            return other_classes(problem.scores(x), problem.y), (), 0, 1
        none = ops.convert_to_tensor(0, dtype="int32")
        *state, num_gradients, num_evaluations = problem.cond(
            index == 0,
            lambda: self.ordered(problem, x, problem.scores(x)),
            lambda: (*state, none, none),
        )
        return state[0], tuple(state), num_gradients, num_evaluations

    def ordered(self, problem: Problem, x: Images, scores: Scores) -> tuple[Any, ...]:
        """Orders the target classes by distance, in the first round.

        Returns:
            The state for all rounds, then the numbers of gradients and of forward passes computed.
        """
        classes = other_classes(scores, problem.y)[:, :_NUM_CANDIDATES]
        count = classes.shape[1]
        num_gradients = count if count > 1 else 0
        if num_gradients:
            order = ops.argsort(self._distances(problem, x, classes), axis=1)
            classes = ops.take_along_axis(classes, order, axis=1)
        # The state has `num_targets` columns: classes are repeated if there are fewer.
        places = ops.convert_to_tensor(np.arange(self.num_targets) % count)
        costs = (ops.convert_to_tensor(cost, dtype="int32") for cost in (num_gradients, 1))
        return ops.take(classes, places, axis=1), *costs

    def _distances(self, problem: Problem, x: Images, classes: Labels) -> Tensor:
        """Returns the distances from `x` to the classes' boundaries if the model were linear."""
        numbers = ops.arange(classes.shape[1])
        infinite = ops.full(ops.shape(x)[:1], float("inf"), dtype=x.dtype)

        def add(number: Tensor, distances: Tensor) -> Any:
            target = ops.take(classes, number, axis=1)

            def scaled_difference(scores: Scores) -> Tensor:
                """Returns `z_y - z_t`, scaled so that its gradient neither over- nor underflows."""
                difference = of_class(scores, problem.y) - of_class(scores, target)
                return difference / ops.stop_gradient(logit_range(scores))

            scores, gradient = problem.at(number).scores_and_gradient(scaled_difference, x)
            products = gradient * steepest_direction(gradient, self.norm)
            slope = ops.sum(ops.reshape(products, (ops.shape(x)[0], -1)), axis=1)
            distance = ops.where(
                slope > 0, ops.cast(scaled_difference(scores), x.dtype) / slope, infinite
            )
            return ops.where(numbers == number, distance[:, None], distances)

        distances = ops.full(ops.shape(classes), float("inf"), dtype=x.dtype)
        return problem.fori_loop(0, classes.shape[1], add, distances)

    def _targeted_loss(self, targets: Tensor) -> ScoreLoss:
        return lambda scores, y: TARGETED_LOSSES[self.loss](scores, y, targets)

    def _num_target_classes(self, num_classes: int) -> int:
        return min(self.num_targets, num_classes - 1) if self.loss in TARGETED_LOSSES else 1
