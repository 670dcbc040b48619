"""Fast adaptive boundary attack."""

from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from keras_robust import backend, scheduled, validation
from keras_robust.attacks.attack import Attack
from keras_robust.attacks.problem import Problem
from keras_robust.attacks.result import RoundResult
from keras_robust.ops import (
    absolute_norm,
    euclidean_norm,
    logit_range,
    maximum_norm,
    of_class,
    other_classes,
    per_example,
    per_example_where,
    projection,
    to_hyperplane,
)

NORMS = {"linf": maximum_norm, "l2": euclidean_norm, "l1": absolute_norm}
_NUM_SEARCH_STEPS = 3
# Each ends this share of the distance beyond where the margin would be 0, if it were linear.
_BEYOND = 1e-3
# How far restarts go where no misclassified image is known, as a share of the range of values.
_REACH = 0.1


@keras.saving.register_keras_serializable(package="keras_robust")
class FAB(Attack):
    """Finds a misclassified image near `x` by projections to a linearised decision boundary.

    For one class `t` other than `y` at a time, the class most likely at `x` first, and
    `f = z_t - z_y`, linearised at `x_i`: `pi_i = {v : f(x_i) + <grad f(x_i), v - x_i> = 0}`,

        delta_i = proj(x_i, pi_i) - x_i,    delta_x = proj(x, pi_i) - x
        alpha = min(||delta_i|| / (||delta_i|| + ||delta_x||), alpha_max)
        x_{i+1} = clip((1 - alpha) * (x_i + eta * delta_i) + alpha * (x + eta * delta_x))

    where `proj` is the nearest point in the norm that is in `bounds` too. (In L1 it moves the
    values with the largest `|grad f_i|` to their bounds, one after the other.) An iterate that is
    misclassified is kept if none was nearer to `x`, and the next step goes from `(1 - beta) * x +
    beta * x_{i+1}` rather than from `x_{i+1}`. In the end the nearest is moved towards `x` on the
    line between them, in 3 steps: each to 1.001 times the distance at which the margin `max_{j !=
    y} z_j - z_y` would be 0 if it were linear.

    Without `epsilon` the attack looks for the smallest perturbation, over all targets and
    restarts. With it, it looks for any perturbation in the ball of that radius, and an example
    is done once there is one.

    Args:
        epsilon: float. Radius of the ball, in units of `x`. Defaults to `None`: no limit.
        norm: `"linf"`, `"l2"` or `"l1"`. Defaults to `"linf"`.
        num_steps: int. The number of gradients for each target and restart. Defaults to `100`.
        num_restarts: int. How many starts to try for each target: the first is `x`, others are
            random, at half the distance of the nearest misclassified image that is known, or at
            `epsilon / 2`. Defaults to `1`.
        num_targets: int. How many classes are aimed at. Defaults to `None`: all others.
        alpha_max: float. The largest weight of the step from `x`, from 0 to 1.
            Defaults to `0.1`.
        eta: float. How far beyond the boundary to step, at least 1. Defaults to `1.05`.
        beta: float. How far to go back towards `x`; 1 is not at all. Defaults to `0.9`.
        bounds: pair of floats. Valid range of `x`. Defaults to `(0.0, 1.0)`.
        from_logits: bool. Whether the model returns logits, rather than probabilities.
            Defaults to `True`.
        objective: callable `(model, x, y) -> scores`, what to differentiate instead of the
            model, as class scores: see `kr.attacks.Attack`. Defaults to `None`.
        num_samples: int. How many draws of a random model each gradient is averaged over.
            Defaults to `1`.

    Call arguments: as `kr.attacks.PGD`. `seed` changes nothing without restarts.

    Returns:
        Tensor, same shape and dtype as `x`, inside `bounds` and, with `epsilon`, the ball. An
        example on which the attack fails keeps its original image, as does one that is
        misclassified to begin with.

    Raises:
        ValueError: as `kr.attacks.PGD`; when called, if `objective` does not return class scores.

    Example:

    >>> import keras, numpy as np, keras_robust as kr
    >>> model = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten(),
    ...                           keras.layers.Dense(10)])
    >>> x = np.random.rand(4, 8, 8, 1).astype("float32")
    >>> y = model.predict(x, verbose=0).argmax(axis=1)
    >>> result = kr.attacks.FAB(norm="l2", num_steps=20).run(model, x, y, seed=0)
    >>> result.norms["l2"].shape
    (4,)

    Departures from the papers: the first paper runs the model on `x_{i+1}` to see whether it is
    misclassified, steps back, and runs it again for the gradient; here one pass on `x_{i+1}`
    gives both, and where that is misclassified, the boundary is linearised there, before the step
    back. At equal numbers of steps this has found perturbations as small, or smaller. In the last
    3 steps, the paper tries the very point where the margin would be 0; there rounding decides, and
    the image may be classified correctly in a batch of another size. Here each goes beyond it by a
    thousandth of the distance, and `f` and the margin are taken to be 0 where they exceed 0 by
    more than rounding can undo. The papers solve for the projection by sorting, here Newton's
    method does, in L1 bisection. All targets are tried from `x` before the first random start.
    Where no misclassified image is known without `epsilon`, the
    random start is at a radius that moves values by up to 0.05 of the range of `bounds`.

    Reference:

    - [Croce and Hein, 2020](https://arxiv.org/abs/1907.02044), Algorithm 1
    - [Croce and Hein, 2020](https://arxiv.org/abs/2003.01690), section 4, for one target at a
      time
    """

    def __init__(
        self,
        epsilon: float | None = None,
        norm: str = "linf",
        num_steps: int = 100,
        num_restarts: int = 1,
        num_targets: int | None = None,
        alpha_max: float = 0.1,
        eta: float = 1.05,
        beta: float = 0.9,
        bounds: tuple[float, float] = (0.0, 1.0),
        from_logits: bool = True,
        objective: Callable[[Any, Any, Any], Any] | None = None,
        num_samples: int = 1,
    ) -> None:
        super().__init__(
            bounds=bounds, from_logits=from_logits, objective=objective, num_samples=num_samples
        )
        if epsilon is not None:
            epsilon = scheduled.check_scheduled("epsilon", epsilon)
        self.epsilon = epsilon
        self.norm = validation.check_choice("norm", norm, NORMS)
        self.num_steps = validation.check_count("num_steps", num_steps)
        self.num_restarts = validation.check_count("num_restarts", num_restarts)
        if num_targets is not None:
            num_targets = validation.check_count("num_targets", num_targets)
        self.num_targets = num_targets
        self.alpha_max = validation.check_number("alpha_max", alpha_max, maximum=1.0)
        self.eta = validation.check_number("eta", eta, minimum=1.0)
        self.beta = validation.check_number("beta", beta, exclusive=True, maximum=1.0)
        self.stops_when_fooled = epsilon is not None

    def num_rounds(self, num_classes: int) -> int:
        return self.num_restarts * self._num_targets(num_classes)

    def improves(self, x: Any, new: Any, new_margin: Any, best: Any, best_margin: Any) -> Any:
        if self.epsilon is None:
            return new_margin > 0  # `generate` returns `start` where it finds nothing nearer.
        return super().improves(x, new, new_margin, best, best_margin)

    def generate(self, problem: Problem, x: Any, start: Any, index: Any, seed: Any) -> RoundResult:
        length = NORMS[self.norm]
        scores = problem.scores(x)
        num_targets = self._num_targets(scores.shape[-1])
        target = ops.take(other_classes(scores, problem.y), index % num_targets, axis=1)
        scale = logit_range(scores)

        def difference(scores: Any) -> Any:
            """`f`, in units that keep its gradient from over- and underflow."""
            value = of_class(scores, target) - of_class(scores, problem.y)
            return (value - ops.stop_gradient(problem.rounding(scores))) / scale

        def nearer(z: Any, z_margin: Any, best: Any, best_margin: Any, distance: Any) -> Any:
            """The nearer of both that are misclassified, its margin and its distance."""
            z_margin, z_distance = ops.cast(z_margin, x.dtype), length(z - x)
            better = ops.logical_and(z_margin > 0, z_distance < distance)
            return (
                per_example_where(better, z, best),
                ops.where(better, z_margin, best_margin),
                ops.where(better, z_distance, distance),
            )

        x_margin = ops.cast(problem.margin_from(scores, x), x.dtype)
        found = (x, x_margin, ops.full_like(x_margin, float("inf")))
        if self.epsilon is None:
            found = nearer(start, problem.margin(start), *found)
        found = nearer(x, x_margin, *found)

        enough = 0.0 if self.epsilon is None else self.epsilon

        def unfinished(step: Any, z: Any, found: Any) -> Any:
            return ops.logical_and(step < self.num_steps, ops.any(found[2] > enough))

        def advance(step: Any, z: Any, found: Any) -> tuple[Any, Any, Any]:
            current = problem.at(step)
            scores, gradient = current.scores_and_gradient(difference, z)
            margins = current.margin_from(scores, z)
            step_back = ops.cast(margins > 0, x.dtype) * (1 - self.beta)
            back = z + per_example(step_back, x) * (x - z)

            value = ops.cast(difference(scores), x.dtype)
            change = ops.sum(ops.reshape(gradient * (x - z), (ops.shape(x)[0], -1)), axis=1)
            distances = -value - step_back * change, -value - change
            delta, delta_x = (
                to_hyperplane(v, gradient, distance, self.norm, self.bounds)
                for v, distance in zip((back, x), distances, strict=True)
            )
            lengths = length(delta), length(delta_x)
            total = lengths[0] + lengths[1]
            alpha = lengths[0] / ops.where(total > 0, total, ops.ones_like(total))
            alpha = per_example(ops.minimum(alpha, self.alpha_max), x)
            new = (1 - alpha) * (back + self.eta * delta) + alpha * (x + self.eta * delta_x)
            return step + 1, problem.as_returned(new), nearer(z, margins, *found)

        z = problem.as_returned(self._start(x, found[2], index // num_targets, seed))
        num_steps, z, found = problem.while_loop(unfinished, advance, (0, z, found))
        last = problem.at(self.num_steps)
        x_adv, margins, distance = nearer(z, last.margin_from(last.scores(z), z), *found)
        x_adv = self._towards(last, x, x_margin, x_adv, margins)
        x_adv = per_example_where(distance < float("inf"), x_adv, z)
        if self.epsilon is not None:
            x_adv = projection(x, self.epsilon, self.norm, self.bounds)(x_adv)

        num_evaluations = 2 + _NUM_SEARCH_STEPS + (self.epsilon is None)
        if self.objective is not None:
            num_evaluations = num_evaluations + 2 + num_steps
        return RoundResult(x_adv, num_steps * self.num_samples, num_evaluations * self.num_samples)

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        del config["targeted"]
        return {
            "epsilon": scheduled.saved(self.epsilon),
            "norm": self.norm,
            "num_steps": self.num_steps,
            "num_restarts": self.num_restarts,
            "num_targets": self.num_targets,
            "alpha_max": self.alpha_max,
            "eta": self.eta,
            "beta": self.beta,
            **config,
        }

    def _num_targets(self, num_classes: int) -> int:
        return min(self.num_targets or num_classes - 1, num_classes - 1)

    def _start(self, x: Any, distance: Any, restart: Any, seed: Any) -> Any:
        """Where a round begins: at `x`, when restarted at a random point near it."""
        draws = backend.normal(ops.shape(x), seed, x.dtype)
        if self.norm == "linf":
            draws = backend.uniform(ops.shape(x), seed, -1.0, 1.0, x.dtype)
        length = NORMS[self.norm]
        limit = self.epsilon
        if limit is None:
            limit = _REACH * self.width * length(ops.ones_like(x))
        radius = ops.minimum(distance, limit) / 2
        if len(getattr(self.bounds[0], "shape", ())):  # Some values may be fixed.
            draws = draws * ops.cast(self.bounds[1] > self.bounds[0], x.dtype)
        size = length(draws)
        share = radius / ops.where(size > 0, size, ops.ones_like(size))
        moved = x + per_example(share, x) * draws
        return ops.where(restart > 0, moved, x)

    def _towards(self, problem: Problem, x: Any, x_margin: Any, x_adv: Any, margins: Any) -> Any:
        """Moves misclassified images towards `x`, to just beyond where the margin is 0."""

        def image(share: Any) -> Any:
            return problem.as_returned(x + per_example(share, x) * (x_adv - x))

        def step(number: Any, ends: tuple[Any, Any, Any, Any]) -> tuple[Any, Any, Any, Any]:
            inner, inner_margin, outer, outer_margin = ends
            rise = outer_margin - inner_margin
            back = outer_margin / ops.where(rise > 0, rise, ops.ones_like(rise))
            boundary = outer - back * (outer - inner)
            share = ops.minimum((1 + _BEYOND) * boundary, outer)
            margin = ops.cast(problem.margin(image(share)), x.dtype)
            fooled = margin > 0
            return (
                ops.where(fooled, inner, share),
                ops.where(fooled, inner_margin, margin),
                ops.where(fooled, share, outer),
                ops.where(fooled, margin, outer_margin),
            )

        ends = (ops.zeros_like(margins), x_margin, ops.ones_like(margins), margins)
        share = problem.fori_loop(0, _NUM_SEARCH_STEPS, step, ends)[2]
        return per_example_where(share < 1, image(share), x_adv)
