"""Searches with Adam, and for the constant `c`, in `kr.attacks.CarliniWagnerL2`."""

from typing import Any, NamedTuple

from keras import ops

from keras_robust.attacks.problem import Problem
from keras_robust.ops.balls import euclidean_norm, per_example, per_example_where
from keras_robust.ops.logits import logit_range, margin
from keras_robust.types import Images, Scores, Tensor

_BETA_1, _BETA_2, _ADAM_EPSILON = 0.9, 0.999, 1e-16
# `|tanh(w)|` at the start for a value at its bound.
_INSIDE = 0.999
# `c` is multiplied by the first factor while it is too low, and divided by the second while it is
# too high. It starts at the third times the value that would suffice for a linear model.
_RAISED, _LOWERED, _FIRST = 10.0, 4.0, 10.0
# Limits of `c` and of its pull on a value, whose square must be finite. The pull's size does not
# matter, since Adam normalises it.
_LARGEST_CONST, _LARGEST_PULL = 1e30, 1e15
# Once an image is known, Adam stops if a round improves the loss and the distance by less than half
# a percent.
_STALLED = 0.995
# Number of bisection steps on the segment between `x` and the final image.
NUM_HALVINGS = 8


class Search(NamedTuple):
    """State of Adam and of the search for `c`, for each example, which rounds pass on."""

    w: Any
    first_moment: Any
    second_moment: Any
    const: Any
    lower: Any  # The largest `c` that has failed.
    upper: Any  # The smallest `c` that has succeeded.
    lowest: Any  # The lowest loss for this `c`.
    shortest: Any  # The distance of the nearest image for any `c`.
    found: Any  # Whether this `c` has led to an adversarial image.
    improving: Any  # Whether the last round has lowered the loss or the distance.


class AdamSearch:
    """Computes the rounds of `kr.attacks.CarliniWagnerL2`.

    Args:
        attack: the `kr.attacks.CarliniWagnerL2` with the settings.
    """

    def __init__(self, attack: Any) -> None:
        self.attack = attack

    def initial_state(self, x: Images) -> tuple[Any, ...]:
        zeros = ops.sum(ops.reshape(ops.zeros_like(x), (ops.shape(x)[0], -1)), axis=1)
        return Search(
            w=self._start(x),
            first_moment=ops.zeros_like(x),
            second_moment=ops.zeros_like(x),
            const=zeros + (self.attack.initial_const or 1.0),
            lower=zeros,
            upper=zeros + float("inf"),
            lowest=zeros + float("inf"),
            shortest=zeros + float("inf"),
            found=zeros > 0,
            improving=zeros < 1,
        )

    def descend(
        self,
        problem: Problem,
        x: Images,
        best: Tensor,
        index: Tensor,
        search: Search,
        active: Tensor,
    ) -> tuple[Any, Any, Any, Search]:
        """Runs the Adam steps of one round.

        If the previous round completed the steps for its `c`, the search restarts at `x` with the
        next `c`.
        """
        part = index % self.attack.rounds_per_search
        first = ops.cast(part * self.attack.steps_per_round, "int32")
        last = ops.minimum(first + self.attack.steps_per_round, self.attack.num_steps)
        search = problem.cond(
            ops.equal(index, 0),
            lambda: self._without_misclassified(problem, x, search),
            lambda: problem.cond(
                ops.equal(part, 0), lambda: self._with_next_const(x, search), lambda: search
            ),
        )

        def body(step: Tensor, best: Tensor, search: Search) -> tuple[Any, Any, Search]:
            return step + 1, *self._step(problem.at(step), x, best, search, step, index)

        step, best, after = problem.while_loop(
            lambda step, best, search: ops.logical_and(step < last, ops.any(active)),
            body,
            (first, best, search),
        )
        improving = ops.logical_or(
            after.lowest < _STALLED * search.lowest, after.shortest < _STALLED * search.shortest
        )
        improving = ops.logical_or(improving, ops.equal(after.shortest, float("inf")))
        best = per_example_where(after.shortest < float("inf"), best, self._image(after.w))
        num_gradients = (step - first) * self.attack.num_samples
        has_objective = self.attack.objective is not None
        num_evaluations = self.attack.num_samples + (num_gradients if has_objective else 0)
        return best, num_gradients, num_evaluations, after._replace(improving=improving)

    def _without_misclassified(self, problem: Problem, x: Images, search: Search) -> Search:
        """Finishes the examples that are adversarial from the start: their distance is 0."""
        is_done = self._is_adversarial(problem.margin(x))
        shortest = ops.where(is_done, ops.zeros_like(search.shortest), search.shortest)
        return search._replace(shortest=shortest)

    def _with_next_const(self, x: Images, search: Search) -> Search:
        found, const = search.found, search.const
        upper = ops.where(found, ops.minimum(search.upper, const), search.upper)
        lower = ops.where(found, search.lower, ops.maximum(search.lower, const))
        between = ops.where(lower > 0, ops.sqrt(lower) * ops.sqrt(upper), upper / _LOWERED)
        raised = ops.minimum(const * _RAISED, _LARGEST_CONST)
        return search._replace(
            w=self._start(x),
            first_moment=ops.zeros_like(x),
            second_moment=ops.zeros_like(x),
            const=ops.where(upper < float("inf"), between, raised),
            lower=lower,
            upper=upper,
            lowest=ops.full_like(search.lowest, float("inf")),
            found=ops.zeros_like(found),
        )

    def _step(
        self, problem: Problem, x: Images, best: Tensor, search: Search, step: Tensor, index: Tensor
    ) -> tuple[Any, Search]:
        """Evaluates the current point, then takes one step of Adam from it."""
        z = problem.as_returned(self._image(search.w))
        margins, own_margins, gradient = self._margin(problem, z)
        excess = self.attack.confidence - margins
        const = search.const
        if self.attack.initial_const is None:
            is_first = ops.logical_and(ops.equal(index, 0), ops.equal(step, 0))
            const = ops.where(is_first, _first_const(excess, gradient), const)

        squared = ops.sum(ops.reshape(ops.square(z - x), (ops.shape(x)[0], -1)), axis=1)
        is_adversarial, distance = self._is_adversarial(own_margins), ops.sqrt(squared)
        is_nearer = ops.logical_and(is_adversarial, distance < search.shortest)
        loss = squared + const * ops.maximum(excess, 0.0)

        pull = ops.where(excess > 0, const, ops.zeros_like(const))
        pull = ops.clip(per_example(pull, x) * gradient, -_LARGEST_PULL, _LARGEST_PULL)
        gradient = 2 * (z - x) - pull
        gradient = gradient * self._slope(search.w)
        first = _BETA_1 * search.first_moment + (1 - _BETA_1) * gradient
        second = _BETA_2 * search.second_moment + (1 - _BETA_2) * ops.square(gradient)
        t = ops.cast(step + 1, x.dtype)
        size = ops.sqrt(second / (1 - _BETA_2**t)) + _ADAM_EPSILON
        after = search._replace(
            w=search.w - self.attack.learning_rate * first / (1 - _BETA_1**t) / size,
            first_moment=first,
            second_moment=second,
            const=const,
            lowest=ops.minimum(search.lowest, loss),
            shortest=ops.where(is_nearer, distance, search.shortest),
            found=ops.logical_or(search.found, is_adversarial),
        )
        return per_example_where(is_nearer, z, best), after

    def approach(
        self, problem: Problem, x: Images, best: Tensor, search: Search
    ) -> tuple[Any, Any, Any, Search]:
        """Moves the image towards `x` as far as it stays adversarial."""

        def image(share: Tensor) -> Tensor:
            return problem.as_returned(x + per_example(share, x) * (best - x))

        def halve(number: Tensor, shares: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
            near, far = shares
            middle = (near + far) / 2
            is_adversarial = self._is_adversarial(problem.at(number).margin(image(middle)))
            return ops.where(is_adversarial, near, middle), ops.where(is_adversarial, middle, far)

        shares = (ops.zeros_like(search.const), ops.ones_like(search.const))
        far = problem.fori_loop(0, NUM_HALVINGS, halve, shares)[1]
        is_moved = ops.logical_and(far < 1, search.shortest < float("inf"))
        num_evaluations = ops.convert_to_tensor(NUM_HALVINGS * self.attack.num_samples, "int32")
        return (
            per_example_where(is_moved, image(far), best),
            0 * num_evaluations,
            num_evaluations,
            search,
        )

    def _margin(self, problem: Problem, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the margins of the attacked scores and the model, and the former's gradient."""

        def scale(scores: Scores) -> Tensor:
            # Dividing by the range keeps a huge gradient from overflowing in half precision.
            # Several draws of a random model must share one scale, so they are not divided.
            values = logit_range(scores)
            return values if self.attack.num_samples == 1 else ops.ones_like(values)

        def scaled(scores: Scores) -> Tensor:
            values = problem.sign * margin(scores, problem.y)
            return values / ops.stop_gradient(scale(scores))

        scores, gradient = problem.scores_and_gradient(scaled, z)
        own = problem.margin_from(scores, z)
        factor = scale(scores)
        margins = scaled(scores) * factor - problem.rounding(scores)
        return margins, own, gradient * per_example(factor, z)

    def _is_adversarial(self, margins: Tensor) -> Tensor:
        return margins >= self.attack.confidence if self.attack.confidence > 0 else margins > 0

    def _start(self, x: Images) -> Tensor:
        """Returns `w` for `x`.

        Values close to a bound start slightly inside it, where the slope of `tanh` lets Adam move
        them.
        """
        middle, half, is_bounded = self._box()
        w = ops.arctanh(ops.clip((x - middle) / half, -_INSIDE, _INSIDE))
        return w if is_bounded is None else ops.where(is_bounded, w, (x - middle) / half)

    def _image(self, w: Tensor) -> Tensor:
        middle, half, is_bounded = self._box()
        share = ops.tanh(w)
        return middle + half * (share if is_bounded is None else ops.where(is_bounded, share, w))

    def _slope(self, w: Tensor) -> Tensor:
        """Returns the derivative of `_image`."""
        _, half, is_bounded = self._box()
        slope = 1 - ops.square(ops.tanh(w))
        if is_bounded is not None:
            slope = ops.where(is_bounded, slope, ops.ones_like(slope))
        return half * slope

    def _box(self) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the middle of the bounds, half their distance, and where both bounds are finite.

        The last is `None` if all bounds are finite. A value without two finite bounds is not
        transformed: it is `w` in units of half the attack's width, clipped to a one-sided bound.
        """
        low, high = self.attack.bounds
        if not len(getattr(low, "shape", ())):
            return (low + high) / 2, (high - low) / 2, None
        is_bounded = ops.logical_and(ops.isfinite(high - low), high > low)
        unit = per_example(self.attack.width, low)
        half = ops.where(is_bounded, high - low, unit) / 2
        return ops.where(is_bounded, (low + high) / 2, ops.zeros_like(low)), half, is_bounded


def _first_const(excess: Tensor, gradient: Tensor) -> Any:
    """Returns the first `c` from the model's linearisation.

    If the model is linear with gradient `g`, the minimum satisfies `2 delta = c g`, and the
    `excess` falls to 0 at `c = 2 * excess / ||g||_2^2`. The first `c` is ten times that.
    """
    slope = euclidean_norm(gradient)
    safe = ops.where(slope > 0, slope, ops.ones_like(slope))
    const = ops.minimum(_FIRST * 2 * excess / safe / safe, _LARGEST_CONST)
    return ops.where(const > 0, const, ops.ones_like(const))
