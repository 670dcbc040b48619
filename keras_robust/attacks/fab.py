"""Fast adaptive boundary attack."""

import keras
from keras import ops

from keras_robust import backend, scheduled, validation
from keras_robust.attacks.attack import Attack
from keras_robust.attacks.problem import Problem
from keras_robust.attacks.result import RoundResult
from keras_robust.ops.balls import (
    absolute_norm,
    euclidean_norm,
    maximum_norm,
    per_example,
    per_example_where,
    projection,
)
from keras_robust.ops.hyperplane import to_hyperplane
from keras_robust.ops.logits import logit_range, of_class, other_classes
from keras_robust.types import Images, Objective, Scheduled, Scores, Seed, Tensor

NORMS = {"linf": maximum_norm, "l2": euclidean_norm, "l1": absolute_norm}
_NUM_SEARCH_STEPS = 3
# Each search step goes beyond the estimated boundary by this fraction of the distance, so that the
# image stays misclassified despite rounding.
_OVERSHOOT = 1e-3
# Without `epsilon`, a restart perturbs values by at most half this fraction of the range of values.
_RESTART_FRACTION = 0.1


@keras.saving.register_keras_serializable(package="keras_robust")
class FAB(Attack):
    """Finds a misclassified image near `x` by projections to a linearised decision boundary.

    The attack aims at one target class `t != y` at a time, starting with the most likely class at
    `x`. At each iterate `x_i` it linearises `f = z_t - z_y`, which gives the hyperplane
    `pi_i = {v : f(x_i) + <grad f(x_i), v - x_i> = 0}`, and computes

        delta_i = proj(x_i, pi_i) - x_i,    delta_x = proj(x, pi_i) - x
        alpha = min(||delta_i|| / (||delta_i|| + ||delta_x||), alpha_max)
        x_{i+1} = clip((1 - alpha) * (x_i + eta * delta_i) + alpha * (x + eta * delta_x))

    where `proj` is the nearest point of the hyperplane, in the given norm, that also lies in
    `bounds`. (In L1, `proj` moves the values with the largest `|grad f_i|` to their bounds, one
    after another.) After a misclassified iterate, the next step starts from
    `(1 - beta) * x + beta * x_{i+1}` instead of `x_{i+1}`.

    The attack keeps the misclassified iterate that is nearest to `x`. Finally, 3 search steps move
    it towards `x` on the line between them. Each step assumes that the margin
    `max_{j != y} z_j - z_y` is linear on this line, and goes to 1.001 times the distance at which
    the margin would be 0.

    Without `epsilon`, the attack looks for the smallest perturbation over all targets and restarts.
    With `epsilon`, it looks for any perturbation in the ball of that radius, and stops on an
    example once it has found one.

    Args:
        epsilon: float, or array that broadcasts to one example. Radius of the ball, in units of
            `x`. Defaults to `None`: no limit.
        norm: `"linf"`, `"l2"` or `"l1"`. Defaults to `"linf"`.
        num_steps: int. Number of gradients for each target and restart. Defaults to `100`.
        num_restarts: int. Number of starts for each target. The first start is `x`. The others are
            random points at half the distance of the nearest misclassified image found so far, and
            at most `epsilon / 2` from `x`. Defaults to `1`.
        num_targets: int. Number of target classes. Defaults to `None`: all classes except `y`.
        alpha_max: float from 0 to 1. Largest weight of the step from `x`. Defaults to `0.1`.
        eta: float, at least 1. Factor by which steps overshoot the boundary. Defaults to `1.05`.
        beta: float greater than 0 and at most 1. Fraction of the distance to `x` that remains after
            the step back; 1 disables the step back. Defaults to `0.9`.
        bounds: pair of floats, or of arrays that broadcast to one example. Valid range of `x`.
            `None` means no bound. Defaults to `(0.0, 1.0)`.
        from_logits: bool. Whether the model returns logits rather than probabilities. Defaults to
            `True`.
        objective: callable `(model, x, y) -> scores` whose class scores the attack differentiates
            instead of the model's; see `kr.attacks.Attack`. Defaults to `None`: the model.
        num_samples: int. Number of draws of a random model over which each gradient is averaged.
            Defaults to `1`.

    Call arguments:
        Same as `kr.attacks.PGD`. Without restarts, `seed` only has an effect on random models.

    Returns:
        Tensor, same shape and dtype as `x`, inside `bounds` and, with `epsilon`, inside the ball.
        Examples on which the attack fails, and examples that are already misclassified, keep their
        original image.

    Raises:
        ValueError: same as `kr.attacks.PGD`; when called, if `objective` does not return class
            scores.

    Example:

    >>> import keras, numpy as np, keras_robust as kr
    >>> model = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten(),
    ...                           keras.layers.Dense(10)])
    >>> x = np.random.rand(4, 8, 8, 1).astype("float32")
    >>> y = model.predict(x, verbose=0).argmax(axis=1)
    >>> result = kr.attacks.FAB(norm="l2", num_steps=20).run(model, x, y, seed=0)
    >>> result.norms["l2"].shape
    (4,)

    Departures from the papers:

    - The first paper runs the model on `x_{i+1}` to see whether it is misclassified, steps back,
      and runs the model again for the gradient. Here, one pass on `x_{i+1}` gives both. If
      `x_{i+1}` is misclassified, the boundary is linearised there, before the step back. With the
      same number of steps, this has found perturbations that are as small or smaller.
    - In the last 3 steps, the paper tries the exact point where the margin would be 0. Rounding
      then decides the class, and the image may be classified correctly in a batch of another size.
      Here, each step goes beyond that point by a thousandth of the distance. The rounding
      tolerance is also subtracted from `f` and from the margin, so that their zeros lie beyond the
      boundary.
    - The papers compute the projection by sorting. Here, Newton's method computes it, and bisection
      in L1.
    - All targets are tried from `x` before the first random start.
    - Without `epsilon`, the radius of random starts is limited to that of a change of every value
      by 0.05 times the range of `bounds`.

    Reference:

    - [Croce and Hein, 2020](https://arxiv.org/abs/1907.02044), Algorithm 1
    - [Croce and Hein, 2020](https://arxiv.org/abs/2003.01690), section 4, for one target at a time
    """

    def __init__(
        self,
        epsilon: Scheduled | None = None,
        norm: str = "linf",
        num_steps: int = 100,
        num_restarts: int = 1,
        num_targets: int | None = None,
        alpha_max: float = 0.1,
        eta: float = 1.05,
        beta: float = 0.9,
        bounds: tuple[float, float] = (0.0, 1.0),
        from_logits: bool = True,
        objective: Objective | None = None,
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

    def improves(
        self, x: Images, new: Tensor, new_margin: Tensor, best: Tensor, best_margin: Tensor
    ) -> Tensor:
        if self.epsilon is None:
            return new_margin > 0  # `generate` returns `start` if it finds nothing nearer.
        return super().improves(x, new, new_margin, best, best_margin)

    def generate(
        self, problem: Problem, x: Images, start: Tensor, index: Tensor, seed: Seed
    ) -> RoundResult:
        length = NORMS[self.norm]
        scores = problem.scores(x)
        num_targets = self._num_targets(scores.shape[-1])
        target = ops.take(other_classes(scores, problem.y), index % num_targets, axis=1)
        scale = logit_range(scores)

        def difference(scores: Scores) -> Tensor:
            """Computes `f`, scaled so that its gradient neither overflows nor underflows."""
            value = of_class(scores, target) - of_class(scores, problem.y)
            return (value - ops.stop_gradient(problem.rounding(scores))) / scale

        def nearer(
            z: Tensor, z_margin: Tensor, best: Tensor, best_margin: Tensor, distance: Tensor
        ) -> Tensor:
            """Returns the nearer misclassified image, its margin and its distance."""
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

        target_distance = 0.0 if self.epsilon is None else self.epsilon

        def unfinished(step: Tensor, z: Tensor, found: Tensor) -> Tensor:
            return ops.logical_and(step < self.num_steps, ops.any(found[2] > target_distance))

        def advance(step: Tensor, z: Tensor, found: Tensor) -> tuple[Tensor, Tensor, Tensor]:
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

    def _num_targets(self, num_classes: int) -> int:
        return min(self.num_targets or num_classes - 1, num_classes - 1)

    def _start(self, x: Images, distance: Tensor, restart: Tensor, seed: Seed) -> Tensor:
        """Returns `x` in the first pass over the targets, then a random point near `x`."""
        draws = backend.normal(ops.shape(x), seed, x.dtype)
        if self.norm == "linf":
            draws = backend.uniform(ops.shape(x), seed, -1.0, 1.0, x.dtype)
        length = NORMS[self.norm]
        limit = self.epsilon
        if limit is None:
            limit = _RESTART_FRACTION * self.width * length(ops.ones_like(x))
        radius = ops.minimum(distance, limit) / 2
        if len(getattr(self.bounds[0], "shape", ())):  # Fixed values stay at `x`.
            draws = draws * ops.cast(self.bounds[1] > self.bounds[0], x.dtype)
        size = length(draws)
        share = radius / ops.where(size > 0, size, ops.ones_like(size))
        moved = x + per_example(share, x) * draws
        return ops.where(restart > 0, moved, x)

    def _towards(
        self, problem: Problem, x: Images, x_margin: Tensor, x_adv: Images, margins: Tensor
    ) -> Tensor:
        """Moves misclassified images towards `x`, to slightly beyond the decision boundary."""

        def image(share: Tensor) -> Tensor:
            return problem.as_returned(x + per_example(share, x) * (x_adv - x))

        def step(
            number: Tensor, ends: tuple[Tensor, Tensor, Tensor, Tensor]
        ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
            inner, inner_margin, outer, outer_margin = ends
            rise = outer_margin - inner_margin
            back = outer_margin / ops.where(rise > 0, rise, ops.ones_like(rise))
            boundary = outer - back * (outer - inner)
            share = ops.minimum((1 + _OVERSHOOT) * boundary, outer)
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
