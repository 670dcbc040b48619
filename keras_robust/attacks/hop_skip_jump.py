"""HopSkipJump."""

import math
from typing import Any, NamedTuple

import keras
from keras import ops

from keras_robust import backend, scheduled, validation
from keras_robust.attacks.attack import Attack
from keras_robust.attacks.boundary_search import AT_ONCE, BoundarySearch
from keras_robust.attacks.meter import Cost
from keras_robust.attacks.problem import Problem
from keras_robust.attacks.result import RoundResult
from keras_robust.ops import per_example_where

# B_1: how many images the first normal is estimated from.
_FIRST_SAMPLES = 100
# How many queries a step and the way back to the boundary have, together.
_SEARCH = 20
# The same for a first image that fools: in so many rounds at most, until there is one.
_START, _NUM_STARTS = 24, 5
# What the estimates before count for in the next.
_MEMORY = 0.5
# How many times as far as the boundary an image is to be sure to fool a random model: there it is
# about as clearly misclassified as the original is not.
_FARTHER = 2.0


class _Plan(NamedTuple):
    """How many queries each round has, beside the one that judges what it has found.

    Args:
        starts: list of ints, for the rounds that look for a first image that fools.
        samples: list of ints, `B_t` for each round after those, which has `_SEARCH` more.
        ends: list of ints. For each round of `starts`: the last round but one that can be paid for
            where that is the one which has found an image.
    """

    starts: list[int]
    samples: list[int]
    ends: list[int]


@keras.saving.register_keras_serializable(package="keras_robust")
class HopSkipJump(Attack):
    """Looks for a small perturbation along the decision boundary, by the predicted class alone.

    Let `phi(z)` be 1 where `z` is misclassified, else -1; that is all that it asks of the model.
    From an image `z_0` that is misclassified, on the segment from `x` to noise or to another image
    of the batch, as near to `x` as it is known to be misclassified, for `t = 1, 2, ...`

        v_t = sum_b (phi(z + delta * u_b) - mean_b phi(z + delta * u_b)) * u_b + v_{t-1} / 2
        s = argmax_{||s|| <= 1} <s, v_t>
        w = clip(z + xi * s)
        z_t = the projection of w to the smallest ball around x in which it is misclassified

    where `z = z_{t-1}`, `u_1, ..., u_{B_t}` are random directions of length 1, and `xi` is the
    first of `||z - x|| / sqrt(t) / 2^k`, `k = 0, 1, ...`, with `phi(w) = 1`. `v_t` estimates the
    normal of the boundary at `z`. `B_t` is `100 * sqrt(t)`; `delta`, an L2 norm, is
    `||z - x||_2 / d` for inputs of `d` values, and `||z - x||_inf / sqrt(d)` for L-infinity. The
    smallest ball is found by bisection. Of all `z_t` the nearest is returned.

    Without `epsilon` the attack looks for the smallest perturbation. With it, it looks for any
    perturbation in the ball of that radius, and an example is done once there is one.

    Args:
        epsilon: float. Radius of the ball, in units of `x`. Defaults to `None`: no limit.
        norm: `"l2"` or `"linf"`, what is to be small. Defaults to `"l2"`.
        num_queries: int, at least 3. How many images the model is asked about for each example, at
            most; those that are judged are among them. (`run` looks at its outputs on the first 8
            originals before.) Defaults to `5000`.
        targeted: bool. `False`: `y` holds the true labels, and the attack leads away from them.
            `True`: `y` holds the labels that the attack leads to; it starts from images of the
            batch that are classified so, and fails where it meets none. Defaults to `False`.
        bounds: pair of floats. Valid range of `x`. Defaults to `(0.0, 1.0)`.
        from_logits: bool. Whether the model returns logits, rather than probabilities. It makes no
            difference to a `kr.BlackBox` that returns classes. Defaults to `True`.
        num_samples: int. How many draws of a random model each query is averaged over: it is asked
            about each image as often. Defaults to `1`.

    Call arguments: as `kr.attacks.PGD`.

    Returns:
        Tensor, same shape and dtype as `x`, inside `bounds` and, with `epsilon`, the ball. An
        example on which the attack fails keeps its original image, as does one that is
        misclassified to begin with.

    Raises:
        ValueError: if an argument is out of its range; when called, as `kr.attacks.PGD`.

    Example:

    >>> import numpy as np, keras_robust as kr
    >>> weights = np.random.default_rng(0).normal(size=(64, 10))
    >>> model = kr.BlackBox(
    ...     lambda x: (x.reshape(len(x), -1) @ weights).argmax(axis=1), num_classes=10)
    >>> x, y = np.random.rand(4, 8, 8, 1).astype("float32"), np.array([3, 1, 4, 1])
    >>> result = kr.attacks.HopSkipJump(norm="l2", num_queries=300).run(model, x, y, seed=0)
    >>> distances = result.norms["l2"]

    A random model may change its mind about images at the boundary. Where none of those that were
    found has fooled it when it was judged, the next is taken from twice as far.

    Of a model that returns scores, "misclassified" is by more than rounding can undo, as success is
    judged.

    Departures from the paper and the authors' code:

    - Half of the sum of the estimates before is added to the estimate of `v_t`. In L-infinity that
      brings the image nearer, in L2 it makes little difference.
    - `z_t` that is farther from `x` than `z_{t-1}` is not taken.
    - Halving `xi` and bisecting have 20 queries together, so that each round costs all examples
      the same. The authors bisect to a share of `d^{-3/2}` of the distance (L2) or `d^{-2}`
      (L-infinity), for which images of 1,000 to 5,000 values need 15 to 25 queries. Where no `xi`
      is small enough, `z_t = z_{t-1}`.
    - For L-infinity `delta` is `sqrt(d)` times as long, so that each value is changed by as large a
      share of the distance as in L2. In either norm it is at least what rounding of the images
      leaves of it. The first is not 0.1 times the range of values.
    - `u_b` is uniform on the sphere for both norms; the authors' code draws from a cube for
      L-infinity. `B_t` is rounded to a multiple of 20.
    - The authors start from noise alone, which is of the right class on some models.

    Reference:

    - [Chen, Jordan and Wainwright, 2020](https://arxiv.org/abs/1904.02144), Algorithms 1 and 2
    """

    uses_gradient = False

    def __init__(
        self,
        epsilon: float | None = None,
        norm: str = "l2",
        num_queries: int = 5000,
        targeted: bool = False,
        bounds: tuple[float, float] = (0.0, 1.0),
        from_logits: bool = True,
        num_samples: int = 1,
    ) -> None:
        super().__init__(
            targeted=targeted, bounds=bounds, from_logits=from_logits, num_samples=num_samples
        )
        if epsilon is not None:
            epsilon = scheduled.check_scheduled("epsilon", epsilon)
        self.epsilon = epsilon
        self.norm = validation.check_choice("norm", norm, ("l2", "linf"))
        self.num_queries = validation.check_count("num_queries", num_queries, minimum=3)
        self.stops_when_fooled = epsilon is not None

    def num_rounds(self, num_classes: int) -> int:
        starts, samples, _ = self._plan()
        return len(starts) + len(samples)

    def round_costs(self, num_classes: int) -> list[Cost]:
        starts, samples, _ = self._plan()
        sizes = starts + [count + _SEARCH for count in samples]
        return [Cost(False, (size + 1) * self.num_samples) for size in sizes]

    def initial_state(self, x: Any) -> tuple[Any, ...]:
        nothing = ops.sum(ops.reshape(ops.zeros_like(x), (ops.shape(x)[0], -1)), axis=1)
        end = ops.cast(nothing, "int32") + len(self._plan().starts)
        return x, ops.zeros_like(x), nothing + float("inf"), end

    def is_active(self, index: Any, margin: Any, state: tuple[Any, ...]) -> Any:
        distance = state[2]
        is_done = (margin > 0) & (self.stops_when_fooled | (distance == 0))
        return self._goes_on(index, state) & ~is_done

    def improves(self, x: Any, new: Any, new_margin: Any, best: Any, best_margin: Any) -> Any:
        return new_margin > 0  # `generate` returns `start` where it finds nothing nearer.

    def generate(
        self, problem: Problem, x: Any, start: Any, index: Any, seed: Any, *state: Any
    ) -> RoundResult:
        z, normal, distance, end = state
        starts, samples, ends = self._plan()
        index = ops.cast(index, "int32")
        is_start, active = index < len(starts), self._goes_on(index, state)
        search = BoundarySearch(problem, x, self.norm, self.bounds)

        def of_round(values: list[int]) -> Any:
            return ops.take(ops.convert_to_tensor(values, dtype="int32"), index)

        num_samples = of_round([0] * len(starts) + samples)
        estimate, is_nan = search.normal(z, distance, num_samples, backend.fold_in(seed, 0))
        new_normal = _MEMORY * normal + estimate
        t = ops.cast(ops.maximum(index - len(starts) + 1, 1), x.dtype)

        def proposal(query: Any) -> Any:
            return problem.cond(
                is_start,
                lambda: search.start(query, backend.fold_in(backend.fold_in(seed, 1), query)),
                lambda: search.step(z, new_normal, distance / ops.sqrt(t), query),
            )

        num_searched = of_round(starts + [_SEARCH] * len(samples))
        new, new_distance, found, was_nan = search.to_boundary(proposal, num_searched)
        nearer = ops.logical_or(is_start, new_distance < distance)
        better = ops.logical_and(active, ops.logical_and(found, nearer))

        # Nothing that was found before has fooled the model when it was judged: other draws of a
        # random model decide there.
        is_rejected = ops.logical_and(ops.equal(search.distance(start - x), 0), active)
        is_rejected = ops.logical_and(is_rejected, ops.logical_not(is_start))
        z = per_example_where(better, new, z)
        normal = per_example_where(active, new_normal, normal)
        distance = ops.where(better, new_distance, distance)
        is_first = ops.logical_and(better, is_start)
        end = ops.where(is_first, of_round(ends + [0] * len(samples)), end)

        farther = problem.as_returned(x + _FARTHER * (z - x))
        if self.epsilon is not None:
            better = ops.logical_and(better, distance <= self.epsilon)
            in_ball = search.distance(farther - x) <= self.epsilon
            is_rejected = ops.logical_and(is_rejected, in_ball)
        x_adv = per_example_where(better, z, start)
        x_adv = per_example_where(is_rejected, farther, x_adv)
        # Left alone, what is NaN would count as an image that does not fool.
        nan = ops.full_like(x, float("nan"))
        x_adv = per_example_where(ops.logical_or(is_nan, was_nan), nan, x_adv)
        num_queries = (num_samples + num_searched) * self.num_samples
        return RoundResult(x_adv, 0, num_queries, (z, normal, distance, end))

    def _goes_on(self, index: Any, state: tuple[Any, ...]) -> Any:
        """Which examples a round is for: those without an image that fools, or those with one."""
        _, _, distance, end = state
        has_started = (distance > 0) & (distance < float("inf"))
        return ((index >= len(self._plan().starts)) == has_started) & (index < end)

    def _plan(self) -> _Plan:
        """The rounds that the queries are enough for."""
        left = self.num_queries - 1  # One judges the original, should the attack have failed.
        starts: list[int] = []
        lefts: list[int] = []
        while len(starts) < _NUM_STARTS and left >= 2:
            starts.append(min(_START, left - 1))
            left -= starts[-1] + 1
            lefts.append(left)

        samples: list[int] = []
        left, unit = lefts[0], AT_ONCE[0]
        while left > _SEARCH + unit:
            wanted = round(_FIRST_SAMPLES * math.sqrt(len(samples) + 1) / unit)
            samples.append(min(wanted, (left - _SEARCH - 1) // unit) * unit)
            left -= samples[-1] + _SEARCH + 1

        ends = []
        for left in lefts:
            end = len(starts)
            for count in samples:
                left -= count + _SEARCH + 1
                end += left >= 0
            ends.append(end)
        return _Plan(starts, samples, ends)

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        del config["objective"]
        return {
            "epsilon": scheduled.saved(self.epsilon),
            "norm": self.norm,
            "num_queries": self.num_queries,
            **config,
        }
