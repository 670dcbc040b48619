"""HopSkipJump, an attack that needs only predicted classes."""

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
from keras_robust.ops.balls import per_example_where
from keras_robust.types import Images, Scheduled, Seed, Tensor

# B_1: the number of images from which the first normal is estimated.
_FIRST_SAMPLES = 100
# The number of queries for a step and the bisection after it, together.
_SEARCH_QUERIES = 20
# The number of queries in each round that looks for a first misclassified image, and the largest
# number of such rounds.
_START_QUERIES, _NUM_STARTS = 24, 5
# Weight of the previous normal in the next one.
_MOMENTUM = 0.5
# An image at the boundary may not fool a random model when it is judged. An image this many times
# as far from `x` is misclassified about as clearly as the original is classified correctly.
_FARTHER = 2.0


class _Plan(NamedTuple):
    """Number of queries in each round, without the one that judges the round's result.

    Args:
        starts: list of ints. Queries of each round that looks for a first misclassified image.
        samples: list of ints. `B_t` for each later round, which has `_SEARCH_QUERIES` more queries.
        ends: list of ints, one for each round of `starts`. If an example's first misclassified
            image is found in that round, `num_queries` allows the rounds below this index.
    """

    starts: list[int]
    samples: list[int]
    ends: list[int]


@keras.saving.register_keras_serializable(package="keras_robust")
class HopSkipJump(Attack):
    """Finds a small perturbation along the decision boundary from predicted classes only.

    The attack only uses `phi(z)`, which is 1 if the model misclassifies `z`, else -1. It first
    projects random noise or another image of the batch to the smallest ball around `x` in which the
    projection is misclassified, which gives `z_0`. Then it iterates, for `t = 1, 2, ...`,

        v_t = sum_b (phi(z + delta * u_b) - mean_b phi(z + delta * u_b)) * u_b + v_{t-1} / 2
        s = argmax_{||s|| <= 1} <s, v_t>
        w = clip(z + xi * s)
        z_t = the projection of w to the smallest ball around x in which it is misclassified

    where `z = z_{t-1}`, and `u_1, ..., u_{B_t}` are random directions of length 1. `v_t` estimates
    the normal of the boundary at `z` from `B_t = 100 * sqrt(t)` queries. `delta` is an L2 length:
    `||z - x||_2 / d` in the L2 norm for inputs of `d` values, and `||z - x||_inf / sqrt(d)` in the
    L-infinity norm. `xi` is the first of `||z - x|| / sqrt(t) / 2^k`, `k = 0, 1, ...`, with
    `phi(w) = 1`. The smallest ball is found by bisection. The attack returns the `z_t` nearest to
    `x`.

    Without `epsilon`, the attack looks for the smallest perturbation. With `epsilon`, it looks for
    any perturbation in the ball of that radius, and stops on an example once it has found one.

    Args:
        epsilon: float, or array that broadcasts to one example. Radius of the ball, in units of
            `x`. Defaults to `None`: no limit.
        norm: `"l2"` or `"linf"`. Norm of the perturbation to minimise. Defaults to `"l2"`.
        num_queries: int, at least 3. Largest number of images for each example on which the model
            is queried, including the images on which success is judged. (In addition, `run` checks
            the model's outputs on the first 8 originals.) Defaults to `5000`.
        targeted: bool. If `False`, `y` holds the true labels, and the attack moves predictions away
            from them. If `True`, `y` holds the target labels. The attack then starts from an image
            of the batch, or noise, that the model assigns to the target class, and fails if it
            finds none. Defaults to `False`.
        bounds: pair of floats, or of arrays that broadcast to one example. Valid range of `x`.
            `None` means no bound. Defaults to `(0.0, 1.0)`.
        from_logits: bool. Whether the model returns logits rather than probabilities. Has no effect
            on a `kr.BlackBox` that returns classes. Defaults to `True`.
        num_samples: int. Number of draws of a random model over which each query is averaged. The
            model is run this many times on each image. Defaults to `1`.

    Call arguments:
        Same as `kr.attacks.PGD`.

    Returns:
        Tensor, same shape and dtype as `x`, inside `bounds` and, with `epsilon`, inside the ball.
        Examples on which the attack fails, and examples that are already misclassified, keep their
        original image.

    Raises:
        ValueError: if an argument is out of its range; when called, same as `kr.attacks.PGD`.

    Example:

    >>> import numpy as np, keras_robust as kr
    >>> weights = np.random.default_rng(0).normal(size=(64, 10))
    >>> model = kr.BlackBox(
    ...     lambda x: (x.reshape(len(x), -1) @ weights).argmax(axis=1), num_classes=10)
    >>> x, y = np.random.rand(4, 8, 8, 1).astype("float32"), np.array([3, 1, 4, 1])
    >>> result = kr.attacks.HopSkipJump(norm="l2", num_queries=300).run(model, x, y, seed=0)
    >>> distances = result.norms["l2"]

    A random model may classify the same image at the boundary differently each time. If none of the
    images found so far has fooled it when it was judged, the next image to be judged is twice as
    far from `x`.

    If the model returns scores, an image counts as misclassified only if its margin is larger than
    rounding can explain. Success is judged in the same way.

    Departures from the paper and the authors' code:

    - `v_{t-1} / 2` is added to the estimate of `v_t`. In L-infinity this leads to smaller
      perturbations. In L2 it makes little difference.
    - A `z_t` that is farther from `x` than `z_{t-1}` is discarded.
    - The search for `xi` and the bisection share 20 queries, so that each round costs the same for
      all examples. The authors bisect to `d^{-3/2}` times the distance (L2) or `d^{-2}` times
      (L-infinity), which takes 15 to 25 queries for images of 1,000 to 5,000 values. If no `xi` is
      small enough, `z_t = z_{t-1}`.
    - In L-infinity, `delta` is `sqrt(d)` times as long, so that each value changes by the same
      fraction of the distance as in L2. In both norms, `delta` is at least twice the change that
      rounding of the images can hide. The first `delta` follows the same rule, instead of being 0.1
      times the range of values.
    - `u_b` is uniform on the sphere in both norms. The authors' code draws from a cube in
      L-infinity. `B_t` is rounded to a multiple of 20.
    - The authors start from noise only. Some models assign all noise to the true class.

    Reference:

    - [Chen, Jordan and Wainwright, 2020](https://arxiv.org/abs/1904.02144), Algorithms 1 and 2
    """

    uses_gradient = False

    def __init__(
        self,
        epsilon: Scheduled | None = None,
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
        sizes = starts + [count + _SEARCH_QUERIES for count in samples]
        return [Cost(False, (size + 1) * self.num_samples) for size in sizes]

    def initial_state(self, x: Images) -> tuple[Any, ...]:
        nothing = ops.sum(ops.reshape(ops.zeros_like(x), (ops.shape(x)[0], -1)), axis=1)
        end = ops.cast(nothing, "int32") + len(self._plan().starts)
        return x, ops.zeros_like(x), nothing + float("inf"), end

    def is_active(self, index: Tensor, margin: Tensor, state: tuple[Tensor, ...]) -> Tensor:
        distance = state[2]
        is_done = (margin > 0) & (self.stops_when_fooled | (distance == 0))
        return self._is_in_round(index, state) & ~is_done

    def improves(
        self, x: Images, new: Tensor, new_margin: Tensor, best: Tensor, best_margin: Tensor
    ) -> Tensor:
        return new_margin > 0  # `generate` returns `start` if it finds nothing nearer.

    def generate(
        self, problem: Problem, x: Images, start: Tensor, index: Tensor, seed: Seed, *state: Any
    ) -> RoundResult:
        z, normal, distance, end = state
        starts, samples, ends = self._plan()
        index = ops.cast(index, "int32")
        is_start, active = index < len(starts), self._is_in_round(index, state)
        search = BoundarySearch(problem, x, self.norm, self.bounds)

        def of_round(values: list[int]) -> Any:
            return ops.take(ops.convert_to_tensor(values, dtype="int32"), index)

        num_samples = of_round([0] * len(starts) + samples)
        estimate, is_nan = search.normal(z, distance, num_samples, backend.fold_in(seed, 0))
        new_normal = _MOMENTUM * normal + estimate
        t = ops.cast(ops.maximum(index - len(starts) + 1, 1), x.dtype)

        def proposal(query: Tensor) -> Tensor:
            return problem.cond(
                is_start,
                lambda: search.start(query, backend.fold_in(backend.fold_in(seed, 1), query)),
                lambda: search.step(z, new_normal, distance / ops.sqrt(t), query),
            )

        num_searched = of_round(starts + [_SEARCH_QUERIES] * len(samples))
        new, new_distance, found, was_nan = search.to_boundary(proposal, num_searched)
        nearer = ops.logical_or(is_start, new_distance < distance)
        better = ops.logical_and(active, ops.logical_and(found, nearer))

        # If `start` is still the original, the image at the boundary did not fool the model when it
        # was judged, on other draws of a random model.
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
        # A NaN margin counts as not fooled. Returning NaN makes `run` raise an error instead.
        nan = ops.full_like(x, float("nan"))
        x_adv = per_example_where(ops.logical_or(is_nan, was_nan), nan, x_adv)
        num_queries = (num_samples + num_searched) * self.num_samples
        return RoundResult(x_adv, 0, num_queries, (z, normal, distance, end))

    def _is_in_round(self, index: Tensor, state: tuple[Tensor, ...]) -> Tensor:
        """Selects the examples that round `index` works on.

        The first rounds look for a misclassified image for examples that have none. Later rounds
        improve the images of examples that have one, until their queries are used up.
        """
        _, _, distance, end = state
        has_started = (distance > 0) & (distance < float("inf"))
        return ((index >= len(self._plan().starts)) == has_started) & (index < end)

    def _plan(self) -> _Plan:
        """Distributes `num_queries` over rounds."""
        left = self.num_queries - 1  # One query judges the original if the attack fails.
        starts: list[int] = []
        lefts: list[int] = []
        while len(starts) < _NUM_STARTS and left >= 2:
            starts.append(min(_START_QUERIES, left - 1))
            left -= starts[-1] + 1
            lefts.append(left)

        samples: list[int] = []
        left, unit = lefts[0], AT_ONCE[0]
        while left > _SEARCH_QUERIES + unit:
            wanted = round(_FIRST_SAMPLES * math.sqrt(len(samples) + 1) / unit)
            samples.append(min(wanted, (left - _SEARCH_QUERIES - 1) // unit) * unit)
            left -= samples[-1] + _SEARCH_QUERIES + 1

        ends = []
        for left in lefts:
            end = len(starts)
            for count in samples:
                left -= count + _SEARCH_QUERIES + 1
                end += left >= 0
            ends.append(end)
        return _Plan(starts, samples, ends)
