"""DeepFool."""

from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from keras_robust import validation
from keras_robust.attacks.attack import Attack
from keras_robust.attacks.meter import Cost
from keras_robust.attacks.problem import Problem
from keras_robust.attacks.result import RoundResult
from keras_robust.ops import (
    euclidean_norm,
    of_class,
    other_classes,
    per_example,
    steepest_direction,
)

# Between rounds, examples that are misclassified drop out.
_STEPS_PER_ROUND = 3
# Added to each step's length, as a share of the range of `bounds`.
_EXTRA_LENGTH = 1e-4
# How far a step leads, in the same unit, where the value is below rounding.
_LONGEST_BLIND = 1e-3
# No step is longer, in the same unit: an infinite one, times a direction with zeros, would be NaN.
_LONGEST = 1e30


@keras.saving.register_keras_serializable(package="keras_robust")
class DeepFool(Attack):
    """Looks for a small perturbation by steps to the nearest linearised decision boundary.

    From `x_0 = x`, until `x_i` is misclassified, with `f_k = z_k - z_y` and `w_k = grad f_k(x_i)`
    for each candidate class `k` other than `y`,

        l = argmin_k |f_k(x_i)| / ||w_k||_q
        r_i = (|f_l(x_i)| / ||w_l||_q + s) * d(w_l)
        x_{i+1} = clip(x_i + (1 + overshoot) * r_i)

    where `q = 2` and `d(w) = w / ||w||_2` for the L2 norm, `q = 1` and `d(w) = sign(w)` for
    L-infinity: `r_i` leads to where `f_l` would be 0 if it were linear, by the shortest way, and on
    by `s`, 1e-4 times the range of `bounds`. An example that is misclassified to begin with is
    returned as it is.

    The perturbations are larger than those of `kr.attacks.FAB` and `kr.attacks.CarliniWagnerL2`,
    for fewer gradients. Where a network's gradient says little of what lies beyond the next
    pixel's threshold, as after adversarial training, they are much larger.

    Args:
        norm: `"l2"` or `"linf"`, what is to be small. Defaults to `"l2"`.
        num_steps: int. The largest number of steps. Defaults to `50`.
        overshoot: float. How much longer than `r_i` a step is, to cross the boundary. Defaults to
            `0.02`.
        num_candidates: int, at least 2. How many classes are looked at: `y`, and those most
            likely at `x` among the others. A step costs one gradient for each but `y`.
            Defaults to `10`.
        bounds: pair of floats. Valid range of `x`. Defaults to `(0.0, 1.0)`.
        from_logits: bool. Whether the model returns logits, rather than probabilities.
            Defaults to `True`.
        objective: callable `(model, x, y) -> scores`, what to differentiate instead of the
            model, as class scores: see `kr.attacks.Attack`. Defaults to `None`.
        num_samples: int. How many draws of a random model each gradient is averaged over.
            Defaults to `1`.

    Call arguments: as `kr.attacks.PGD`. The papers step away from the class that the model
        predicts at `x`; pass it as `y` to do so on examples that are misclassified.

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

    Departures from the papers, all of which make it succeed more often:

    - They do not clip. Here the iterates stay in `bounds`, and each step starts from the clipped
      one. From the middle of the steps on, what is left of the examples is likely to be stuck at
      the bounds; then the values at a bound that `w_l` leads out of are left out of it, and the
      step is the one that the others need.
    - They overshoot once, at the end. Here each step does: that is `x + (1 + overshoot) * sum
      r_i`, as in the published code, and the next gradient is taken beyond the linearised
      boundary rather than on it.
    - `s` is in the published code alone, as 1e-4. Without it the steps become too small to change
      anything where the iterates converge to a boundary that curves away from them.

    Reference:

    - [Moosavi-Dezfooli et al., 2016](https://arxiv.org/abs/1511.04599), Algorithm 2 and eqs. 10
      to 12
    - Yan et al., Deep Defense: Training DNNs with Improved Adversarial Robustness, eqs. 1 and 2
    """

    def __init__(
        self,
        norm: str = "l2",
        num_steps: int = 50,
        overshoot: float = 0.02,
        num_candidates: int = 10,
        bounds: tuple[float, float] = (0.0, 1.0),
        from_logits: bool = True,
        objective: Callable[[Any, Any, Any], Any] | None = None,
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

    def improves(self, x: Any, new: Any, new_margin: Any, best: Any, best_margin: Any) -> Any:
        return best_margin <= 0  # A round goes on from where the one before it has ended.

    def generate(self, problem: Problem, x: Any, start: Any, index: Any, seed: Any) -> RoundResult:
        scores = problem.scores(x)
        classes = other_classes(scores, problem.y)[:, : self.num_candidates - 1]
        rounding = problem.rounding(scores)
        first = index * _STEPS_PER_ROUND
        last = ops.minimum(first + _STEPS_PER_ROUND, self.num_steps)

        def differences(scores: Any) -> Any:
            of_label = ops.expand_dims(of_class(scores, problem.y), 1)
            return ops.take_along_axis(scores, classes, axis=1) - of_label

        def unfinished(step: Any, x_adv: Any, margin: Any) -> Any:
            return ops.logical_and(step < last, ops.any(margin <= 0))

        def body(step: Any, x_adv: Any, margin: Any) -> tuple[Any, Any, Any]:
            now = problem.at(step)
            values, normals = now.scores_and_jacobian(differences, x_adv)
            value, normal = self._nearest(values, normals)
            if_stuck = _without_outward(normal, x_adv, self.bounds)
            normal = ops.where(2 * step >= self.num_steps, if_stuck, normal)
            moved = x_adv + (1 + self.overshoot) * self._step(value, normal, rounding)
            stands = per_example(margin <= 0, x)
            x_adv = ops.where(stands, ops.clip(moved, *self.bounds), x_adv)
            return step + 1, x_adv, now.margin(now.as_returned(x_adv))

        first = ops.convert_to_tensor(first, "int32")
        state = (first, start, problem.margin(start))
        step, x_adv, _ = problem.while_loop(unfinished, body, state)
        num_gradients = (step - first) * classes.shape[1] * self.num_samples
        return RoundResult(x_adv, num_gradients, (step - first + 2) * self.num_samples)

    def _nearest(self, values: Any, normals: Any) -> tuple[Any, Any]:
        """`f_l` and `w_l` of the class whose linearised boundary is nearest."""
        num_candidates = values.shape[1]
        flat = ops.reshape(normals, (-1, *normals.shape[2:]))
        slopes = ops.reshape(self._dual_norm(flat), (-1, num_candidates))
        nearest = ops.argmin(_ratio(ops.abs(values), slopes, float("inf")), axis=1)
        is_nearest = ops.one_hot(nearest, num_candidates, dtype=values.dtype)
        weights = ops.reshape(is_nearest, (-1, num_candidates) + (1,) * (len(normals.shape) - 2))
        return ops.sum(is_nearest * values, axis=1), ops.sum(weights * normals, axis=1)

    def _step(self, value: Any, normal: Any, rounding: Any) -> Any:
        """The shortest step to where `value` would be 0 if its gradient were `normal` all over.

        Where nothing but rounding is left of the value, it says little of the distance.
        """
        slope, width = self._dual_norm(normal), self.width
        blind = ops.minimum(_ratio(rounding, slope, 0.0), _LONGEST_BLIND * width)
        distance = ops.maximum(_ratio(ops.abs(value), slope, 0.0), blind)
        length = ops.minimum(distance + _EXTRA_LENGTH * width, _LONGEST * width)
        return per_example(length, normal) * steepest_direction(normal, self.norm)

    def _dual_norm(self, normal: Any) -> Any:
        if self.norm == "l2":
            return euclidean_norm(normal)
        return ops.sum(ops.reshape(ops.abs(normal), (ops.shape(normal)[0], -1)), axis=1)

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        del config["targeted"]
        return {
            "norm": self.norm,
            "num_steps": self.num_steps,
            "overshoot": self.overshoot,
            "num_candidates": self.num_candidates,
            **config,
        }


def _without_outward(direction: Any, x: Any, bounds: tuple[float, float]) -> Any:
    """`direction`, 0 where it leads out of the bounds."""
    outward = ops.logical_or(
        ops.logical_and(x <= bounds[0], direction < 0),
        ops.logical_and(x >= bounds[1], direction > 0),
    )
    return ops.where(outward, ops.zeros_like(direction), direction)


def _ratio(numerator: Any, denominator: Any, otherwise: float) -> Any:
    """The ratio; `otherwise` where the denominator is 0."""
    is_zero = denominator == 0
    ratio = numerator / ops.where(is_zero, ops.ones_like(denominator), denominator)
    return ops.where(is_zero, ops.full_like(ratio, otherwise), ratio)
