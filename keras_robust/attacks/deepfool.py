"""DeepFool."""

from typing import Any

import keras
from keras import ops

from keras_robust import validation
from keras_robust.attacks.attack import Attack
from keras_robust.attacks.meter import Cost
from keras_robust.attacks.problem import Problem
from keras_robust.attacks.result import RoundResult
from keras_robust.ops.balls import euclidean_norm, per_example, steepest_direction
from keras_robust.ops.logits import of_class, other_classes
from keras_robust.types import Images, Objective, Scores, Seed, Tensor

# Misclassified examples are dropped between rounds.
_STEPS_PER_ROUND = 3
# Added to each step's length, as a share of the range of `bounds`.
_EXTRA_LENGTH = 1e-4
# Limit, in the same unit, of the least length of a step where `f_l` may be rounding error.
_LONGEST_BLIND = 1e-3
# Limit of a step's length, in the same unit. An infinite length times a 0 in the direction is NaN.
_LONGEST = 1e30


@keras.saving.register_keras_serializable(package="keras_robust")
class DeepFool(Attack):
    """Finds a small perturbation by steps to the nearest linearised decision boundary.

    From `x_0 = x`, until `x_i` is misclassified, with `f_k = z_k - z_y` and `w_k = grad f_k(x_i)`
    for each candidate class `k` other than `y`,

        l = argmin_k |f_k(x_i)| / ||w_k||_q
        r_i = (|f_l(x_i)| / ||w_l||_q + s) * d(w_l)
        x_{i+1} = clip(x_i + (1 + overshoot) * r_i)

    For the L2 norm, `q = 2` and `d(w) = w / ||w||_2`. For L-infinity, `q = 1` and `d(w) = sign(w)`.
    `r_i` is the shortest step to the point where `f_l` would be 0 if it were linear, and extends
    beyond it by `s`, 1e-4 times the range of `bounds`. An example that is already misclassified is
    returned unchanged.

    Args:
        norm: `"l2"` or `"linf"`, the norm to minimise. Defaults to `"l2"`.
        num_steps: int. Maximum number of steps. Defaults to `50`.
        overshoot: float. Relative amount by which a step is longer than `r_i`, to cross the
            boundary. Defaults to `0.02`.
        num_candidates: int, at least 2. Number of classes to consider: `y`, and the other classes
            that are most likely at `x`. A step computes one gradient for each of them except `y`.
            Defaults to `10`.
        bounds: pair of floats, or of arrays that broadcast to one example. Valid range of `x`.
            `None` means no bound. Defaults to `(0.0, 1.0)`.
        from_logits: bool. Whether the model returns logits rather than probabilities. Defaults to
            `True`.
        objective: callable `(model, x, y) -> scores` that the attack differentiates instead of the
            model. It must return class scores. See `kr.attacks.Attack`. Defaults to `None`.
        num_samples: int. Number of draws of a random model over which each gradient is averaged.
            Defaults to `1`.

    Call arguments:
        Same as `kr.attacks.PGD`. The papers move away from the class that the model predicts at
        `x`. To do the same on misclassified examples, pass this class as `y`.

    Returns:
        Tensor, same shape and dtype as `x`, inside `bounds`. An example on which the attack fails
        keeps its original image.

    Raises:
        ValueError: if an argument is out of its range; when called, if `x`, `y` or the model's
            outputs are not as described above, or if `objective` does not return class scores.

    Example:

    >>> import keras, numpy as np, keras_robust as kr
    >>> model = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten(),
    ...                           keras.layers.Dense(10)])
    >>> x, y = np.random.rand(4, 8, 8, 1).astype("float32"), np.array([3, 1, 4, 1])
    >>> result = kr.attacks.DeepFool(norm="l2").run(model, x, y)
    >>> distances = result.norms["l2"]

    DeepFool computes fewer gradients than `kr.attacks.FAB` and `kr.attacks.CarliniWagnerL2`, but
    its perturbations are larger. They are much larger where a network's gradient is informative
    only close to the current point, as after adversarial training.

    Departures from the papers, all of which make the attack succeed more often:

    - The papers do not clip. Here the iterates stay in `bounds`, and each step starts from the
      clipped iterate. In the second half of the steps, the remaining examples are likely to be
      stuck at the bounds. `w_l` then excludes the values at a bound that it would push further out,
      and the step is the shortest one for the other values.
    - The papers overshoot once, at the end. Here each step overshoots, which is
      `x + (1 + overshoot) * sum r_i`, as in the published code. The next gradient is therefore
      taken beyond the linearised boundary rather than on it.
    - `s` is only in the published code, as 1e-4. Without it, the steps become too small to have an
      effect where the iterates converge to a boundary that curves away from them.

    Reference:

    - [Moosavi-Dezfooli et al., 2016](https://arxiv.org/abs/1511.04599), Algorithm 2 and eqs. 10-12
    - Yan, Guo and Zhang, 2018, Deep Defense: Training DNNs with Improved Adversarial Robustness,
      eqs. 1 and 2
    """

    def __init__(
        self,
        norm: str = "l2",
        num_steps: int = 50,
        overshoot: float = 0.02,
        num_candidates: int = 10,
        bounds: tuple[float, float] = (0.0, 1.0),
        from_logits: bool = True,
        objective: Objective | None = None,
        num_samples: int = 1,
    ) -> None:
        super().__init__(
            bounds=bounds, from_logits=from_logits, objective=objective, num_samples=num_samples
        )
        self.norm = validation.check_choice("norm", norm, ("l2", "linf"))
        self.num_steps = validation.check_count("num_steps", num_steps)
        self.overshoot = validation.check_number("overshoot", overshoot)
        self.num_candidates = validation.check_count("num_candidates", num_candidates)
        if self.num_candidates < 2:
            raise ValueError(
                "Argument `num_candidates` must be at least 2: `y` is one of them. "
                f"Received: num_candidates={num_candidates}"
            )

    def num_rounds(self, num_classes: int) -> int:
        return -(-self.num_steps // _STEPS_PER_ROUND)

    def round_costs(self, num_classes: int) -> list[Cost]:
        passes = _STEPS_PER_ROUND * (min(self.num_candidates, num_classes) - 1) * self.num_samples
        return [Cost(True, passes)] * self.num_rounds(num_classes)

    def improves(
        self, x: Images, new: Tensor, new_margin: Tensor, best: Tensor, best_margin: Tensor
    ) -> Tensor:
        return best_margin <= 0  # Each round continues from the last iterate of the previous one.

    def generate(
        self, problem: Problem, x: Images, start: Tensor, index: Tensor, seed: Seed
    ) -> RoundResult:
        scores = problem.scores(x)
        classes = other_classes(scores, problem.y)[:, : self.num_candidates - 1]
        rounding = problem.rounding(scores)
        first = index * _STEPS_PER_ROUND
        last = ops.minimum(first + _STEPS_PER_ROUND, self.num_steps)

        def differences(scores: Scores) -> Tensor:
            of_label = ops.expand_dims(of_class(scores, problem.y), 1)
            return ops.take_along_axis(scores, classes, axis=1) - of_label

        def unfinished(step: Tensor, x_adv: Images, margin: Tensor) -> Tensor:
            return ops.logical_and(step < last, ops.any(margin <= 0))

        def body(step: Tensor, x_adv: Images, margin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            current = problem.at(step)
            values, normals = current.scores_and_jacobian(differences, x_adv)
            value, normal = self._nearest(values, normals)
            inward = _without_outward(normal, x_adv, self.bounds)
            normal = ops.where(2 * step >= self.num_steps, inward, normal)
            moved = x_adv + (1 + self.overshoot) * self._step(value, normal, rounding)
            is_not_fooled = per_example(margin <= 0, x)
            x_adv = ops.where(is_not_fooled, ops.clip(moved, *self.bounds), x_adv)
            return step + 1, x_adv, current.margin(current.as_returned(x_adv))

        first = ops.convert_to_tensor(first, "int32")
        state = (first, start, problem.margin(start))
        step, x_adv, _ = problem.while_loop(unfinished, body, state)
        num_gradients = (step - first) * classes.shape[1] * self.num_samples
        return RoundResult(x_adv, num_gradients, (step - first + 2) * self.num_samples)

    def _nearest(self, values: Tensor, normals: Tensor) -> tuple[Tensor, Tensor]:
        """Returns `f_l` and `w_l` of the class whose linearised boundary is nearest."""
        num_candidates = values.shape[1]
        flat = ops.reshape(normals, (-1, *normals.shape[2:]))
        slopes = ops.reshape(self._dual_norm(flat), (-1, num_candidates))
        nearest = ops.argmin(_ratio(ops.abs(values), slopes, float("inf")), axis=1)
        is_nearest = ops.one_hot(nearest, num_candidates, dtype=values.dtype)
        weights = ops.reshape(is_nearest, (-1, num_candidates) + (1,) * (len(normals.shape) - 2))
        return ops.sum(is_nearest * values, axis=1), ops.sum(weights * normals, axis=1)

    def _step(self, value: Any, normal: Tensor, rounding: Tensor) -> Tensor:
        """Returns the shortest step to where `value` would be 0 if its gradient were constant.

        A value below rounding says little about the distance, so the step covers at least the
        distance that rounding can hide, up to a limit.
        """
        slope, width = self._dual_norm(normal), self.width
        blind = ops.minimum(_ratio(rounding, slope, 0.0), _LONGEST_BLIND * width)
        distance = ops.maximum(_ratio(ops.abs(value), slope, 0.0), blind)
        length = ops.minimum(distance + _EXTRA_LENGTH * width, _LONGEST * width)
        return per_example(length, normal) * steepest_direction(normal, self.norm)

    def _dual_norm(self, normal: Tensor) -> Tensor:
        if self.norm == "l2":
            return euclidean_norm(normal)
        return ops.sum(ops.reshape(ops.abs(normal), (ops.shape(normal)[0], -1)), axis=1)


def _without_outward(direction: Tensor, x: Images, bounds: tuple[float, float]) -> Tensor:
    """Returns `direction`, set to 0 where it leads out of the bounds."""
    outward = ops.logical_or(
        ops.logical_and(x <= bounds[0], direction < 0),
        ops.logical_and(x >= bounds[1], direction > 0),
    )
    return ops.where(outward, ops.zeros_like(direction), direction)


def _ratio(numerator: Tensor, denominator: Tensor, otherwise: float) -> Tensor:
    """Returns the ratio, or `otherwise` where the denominator is 0."""
    is_zero = denominator == 0
    ratio = numerator / ops.where(is_zero, ops.ones_like(denominator), denominator)
    return ops.where(is_zero, ops.full_like(ratio, otherwise), ratio)
