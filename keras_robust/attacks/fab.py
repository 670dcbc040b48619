"""Fast adaptive boundary attack."""

from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from keras_robust import backend, validation
from keras_robust.attacks.attack import Attack
from keras_robust.attacks.problem import Problem
from keras_robust.ops import (
    euclidean_norm,
    logit_range,
    margin,
    maximum_norm,
    of_class,
    other_classes,
    per_example,
    projection,
    to_hyperplane,
)

_NORMS = {"linf": maximum_norm, "l2": euclidean_norm}
_NUM_SEARCH_STEPS = 3


@keras.saving.register_keras_serializable(package="keras_robust")
class FAB(Attack):
    """Finds a misclassified image near `x` by projections to a linearised decision boundary.

    For one class `t` other than `y` at a time, the class most likely at `x` first, and
    `f = z_t - z_y`, linearised at `x_i`: `pi_i = {v : f(x_i) + <grad f(x_i), v - x_i> = 0}`,

        delta_i = proj(x_i, pi_i) - x_i,    delta_x = proj(x, pi_i) - x
        alpha = min(||delta_i|| / (||delta_i|| + ||delta_x||), alpha_max)
        x_{i+1} = clip((1 - alpha) * (x_i + eta * delta_i) + alpha * (x + eta * delta_x))

    where `proj` is the nearest point in the norm that is in `bounds` too. A misclassified iterate
    is kept if none was nearer, and the next step starts from `(1 - beta) * x + beta * x_{i+1}`.
    The nearest of all is moved towards `x` along the segment between them, at last.

    Without `epsilon` the attack looks for the smallest perturbation, over all targets and
    restarts. With it, it looks for any in the ball of that radius, and is done once it has found
    one.

    Args:
        epsilon: float. Radius of the ball, in units of `x`. Defaults to `None`: no limit.
        norm: `"linf"` or `"l2"`. Defaults to `"linf"`.
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

    Call arguments, returns: as `kr.attacks.PGD`.

    Raises:
        ValueError: as `kr.attacks.PGD`; when called, if `objective` does not return class scores.

    Example:

    >>> import keras_robust as kr
    >>> attack = kr.attacks.FAB(norm="l2", num_steps=20)

    Reference:

    - [Croce and Hein, 2020](https://arxiv.org/abs/1907.02044), Algorithm 1
    - [Croce and Hein, 2020](https://arxiv.org/abs/2003.01690), section 4: one target at a time
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
            epsilon = validation.check_number("epsilon", epsilon)
        self.epsilon = epsilon
        self.norm = validation.check_choice("norm", norm, ("linf", "l2"))
        self.num_steps = validation.check_count("num_steps", num_steps)
        self.num_restarts = validation.check_count("num_restarts", num_restarts)
        if num_targets is not None:
            num_targets = validation.check_count("num_targets", num_targets)
        self.num_targets = num_targets
        self.alpha_max = validation.check_number("alpha_max", alpha_max)
        self.eta = validation.check_number("eta", eta, minimum=1.0)
        self.beta = validation.check_number("beta", beta, exclusive=True)
        self.stops_when_fooled = epsilon is not None

    def num_rounds(self, num_classes: int) -> int:
        return self.num_restarts * self._num_targets(num_classes)

    def improves(self, x: Any, new: Any, new_margin: Any, best: Any, best_margin: Any) -> Any:
        if self.epsilon is None:
            return new_margin > 0  # `generate` returns `start` where it finds nothing nearer.
        return super().improves(x, new, new_margin, best, best_margin)

    def generate(
        self, problem: Problem, x: Any, start: Any, index: Any, seed: Any
    ) -> tuple[Any, Any, Any]:
        length = _NORMS[self.norm]
        scores = problem.scores(x)
        num_targets = self._num_targets(scores.shape[-1])
        target = ops.take(other_classes(scores, problem.y), index % num_targets, axis=1)
        scale = logit_range(scores)

        def difference(scores: Any) -> Any:
            return (of_class(scores, target) - of_class(scores, problem.y)) / scale

        def fooled(scores: Any, z: Any) -> Any:
            if self.objective is None:
                return margin(scores, problem.y) > 0
            return problem.margin(z) > 0

        def keep(is_fooled: Any, z: Any, best: Any, shortest: Any) -> tuple[Any, Any]:
            distance = length(z - x)
            better = ops.logical_and(is_fooled, distance < shortest)
            return _where(better, z, best), ops.where(better, distance, shortest)

        best, shortest = x, ops.full_like(scale, float("inf"))
        if self.epsilon is None:
            best, shortest = keep(problem.margin(start) > 0, start, best, shortest)
        best, shortest = keep(fooled(scores, x), x, best, shortest)

        def unfinished(step: Any, z: Any, best: Any, shortest: Any) -> Any:
            return ops.logical_and(step < self.num_steps, ops.any(shortest > (self.epsilon or 0)))

        def body(step: Any, z: Any, best: Any, shortest: Any) -> tuple[Any, Any, Any, Any]:
            scores, gradient = problem.at(step).scores_and_gradient(difference, z)
            is_fooled = fooled(scores, z)
            best, shortest = keep(is_fooled, z, best, shortest)
            value = difference(scores)

            def to_boundary(v: Any) -> Any:
                change = ops.reshape(gradient * (v - z), (ops.shape(x)[0], -1))
                distance = -(value + ops.sum(change, axis=1))
                return to_hyperplane(v, gradient, distance, self.norm, self.bounds)

            back = _where(is_fooled, x + self.beta * (z - x), z)
            delta, delta_x = to_boundary(back), to_boundary(x)
            near, far = length(delta), length(delta_x)
            total = near + far
            alpha = near / ops.where(total > 0, total, ops.ones_like(total))
            alpha = per_example(ops.minimum(alpha, self.alpha_max), x)
            z = (1 - alpha) * (back + self.eta * delta) + alpha * (x + self.eta * delta_x)
            return step + 1, ops.clip(z, *self.bounds), best, shortest

        z = self._start(x, shortest, index // num_targets, seed)
        step, z, best, shortest = ops.while_loop(unfinished, body, (0, z, best, shortest))
        scores = problem.at(self.num_steps).scores(z)
        best, shortest = keep(fooled(scores, z), z, best, shortest)
        found = shortest < float("inf")
        best = self._search(problem, x, _where(found, best, z))
        if self.epsilon is not None:
            best = projection(x, self.epsilon, self.norm, self.bounds)(best)
        num_evaluations = 2 + 2 * _NUM_SEARCH_STEPS
        return best, step * self.num_samples, num_evaluations * self.num_samples

    def _start(self, x: Any, shortest: Any, restart: Any, seed: Any) -> Any:
        """Where a round begins: at `x`, when restarted at a random point near it."""
        length = _NORMS[self.norm]
        noise = backend.normal(ops.shape(x), seed, x.dtype)
        if self.norm == "linf":
            noise = backend.uniform(ops.shape(x), seed, -1.0, 1.0, x.dtype)
        noise = noise / per_example(length(noise), x)
        limit = self.epsilon
        if limit is None:
            limit = length(ops.full_like(x, 0.1 * (self.bounds[1] - self.bounds[0])))
        radius = ops.minimum(shortest, limit) / 2
        moved = ops.clip(x + per_example(radius, x) * noise, *self.bounds)
        return ops.where(restart > 0, moved, x)

    def _search(self, problem: Problem, x: Any, best: Any) -> Any:
        """Moves fooling images towards `x`, to where the margin is 0 if it is linear."""

        def body(step: Any, inside: Any, m_in: Any, outside: Any, m_out: Any) -> Any:
            share = -m_in / ops.maximum(m_out - m_in, 1e-30)
            share = 1 - 0.9 * (1 - share)
            z = inside + per_example(share, x) * (outside - inside)
            m = problem.margin(z)
            hit = m > 0
            return (
                step + 1,
                _where(hit, inside, z),
                ops.where(hit, m_in, m),
                _where(hit, z, outside),
                ops.where(hit, m, m_out),
            )

        m_in, m_out = problem.margin(x), problem.margin(best)
        state = (0, x, m_in, best, m_out)
        found = ops.while_loop(lambda step, *_: step < _NUM_SEARCH_STEPS, body, state)[3]
        return _where(ops.logical_and(m_in <= 0, m_out > 0), found, best)

    def _num_targets(self, num_classes: int) -> int:
        return min(self.num_targets or num_classes - 1, num_classes - 1)

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        del config["targeted"]
        return {
            "epsilon": self.epsilon,
            "norm": self.norm,
            "num_steps": self.num_steps,
            "num_restarts": self.num_restarts,
            "num_targets": self.num_targets,
            "alpha_max": self.alpha_max,
            "eta": self.eta,
            "beta": self.beta,
            **config,
        }


def _where(condition: Any, x: Any, otherwise: Any) -> Any:
    return ops.where(per_example(condition, x), x, otherwise)
