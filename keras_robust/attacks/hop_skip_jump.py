"""HopSkipJump."""

import math
from typing import Any, NamedTuple

import keras
from keras import ops

from keras_robust import backend, scheduled, validation
from keras_robust.attacks.attack import Attack
from keras_robust.attacks.boundary_search import BoundarySearch
from keras_robust.attacks.meter import Cost
from keras_robust.attacks.problem import Problem
from keras_robust.attacks.result import RoundResult
from keras_robust.ops import per_example_where

# B_0: how many images the first direction is estimated from.
_FIRST_SAMPLES = 100
# Numbers of images that directions are estimated from are multiples of this.
_UNIT = 20
# How many queries a search for the boundary has; one for a first image that fools has more.
_SEARCH, _FIRST_SEARCH = 20, 24
# How many rounds look for a first image, while there is none.
_NUM_STARTS = 5


class _Plan(NamedTuple):
    """How many queries each round has, beside the one that judges what it has found.

    Args:
        starts: list of ints, for the rounds that look for a first image.
        samples: list of ints, `B_t` of each round after them.
        ends: list of ints. How many rounds there are for an example whose first image was found in
            each of those of `starts`.
    """

    starts: list[int]
    samples: list[int]
    ends: list[int]


def plan(num_queries: int) -> _Plan:
    """The rounds that so many queries are enough for."""
    left = num_queries - 1  # One judges the original image, should the attack have failed.
    starts: list[int] = []
    lefts: list[int] = []
    while len(starts) < _NUM_STARTS and left >= 2:
        starts.append(min(_FIRST_SEARCH, left - 1))
        left -= starts[-1] + 1
        lefts.append(left)

    samples: list[int] = []
    left = lefts[0]
    while (fitting := (left - _SEARCH - 1) // _UNIT * _UNIT) > 0:
        wanted = _FIRST_SAMPLES * math.sqrt(len(samples) + 1)
        samples.append(min(round(wanted / _UNIT) * _UNIT, fitting))
        left -= samples[-1] + _SEARCH + 1

    ends = []
    for left in lefts:
        end = len(starts)
        for count in samples:
            left -= count + _SEARCH + 1
            end += left >= 0
        ends.append(end)
    return _Plan(starts, samples, ends)


@keras.saving.register_keras_serializable(package="keras_robust")
class HopSkipJump(Attack):
    """Looks for a small perturbation by the predicted class alone, along the decision boundary.
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
        starts, samples, _ = plan(self.num_queries)
        return len(starts) + len(samples)

    def round_costs(self, num_classes: int) -> list[Cost]:
        starts, samples, _ = plan(self.num_queries)
        sizes = starts + [count + _SEARCH for count in samples]
        return [Cost(False, (size + 1) * self.num_samples) for size in sizes]

    def initial_state(self, x: Any) -> tuple[Any, ...]:
        nothing = ops.sum(ops.reshape(ops.zeros_like(x), (ops.shape(x)[0], -1)), axis=1)
        starts = plan(self.num_queries).starts
        return x, nothing + float("inf"), ops.cast(nothing, "int32") + len(starts)

    def is_active(self, index: Any, margin: Any, state: tuple[Any, ...]) -> Any:
        _, distance, end = state
        is_done = (margin > 0) & (self.stops_when_fooled | (distance == 0))
        return self._goes_on(index, distance, end) & ~is_done

    def _goes_on(self, index: Any, distance: Any, end: Any) -> Any:
        """Which examples the round is for: those without a first image, or those with one."""
        has_started = (distance > 0) & (distance < float("inf"))
        return ((index >= len(plan(self.num_queries).starts)) == has_started) & (index < end)

    def improves(self, x: Any, new: Any, new_margin: Any, best: Any, best_margin: Any) -> Any:
        return new_margin > 0  # `generate` returns `start` where it finds nothing nearer.

    def generate(
        self, problem: Problem, x: Any, start: Any, index: Any, seed: Any, *state: Any
    ) -> RoundResult:
        z, distance, end = state
        starts, samples, ends = plan(self.num_queries)
        is_first = index < len(starts)
        search = BoundarySearch(problem, x, self.norm, self.bounds)

        def of_round(values: list[int]) -> Any:
            return ops.take(ops.convert_to_tensor(values, dtype="int32"), index)

        num_samples = of_round([0] * len(starts) + samples)
        direction, is_bad = search.direction(z, distance, num_samples, backend.fold_in(seed, 0))
        t = ops.cast(ops.maximum(index - len(starts) + 1, 1), x.dtype)
        proposals_seed = backend.fold_in(seed, 1)

        def proposal(query: Any) -> Any:
            return problem.cond(
                is_first,
                lambda: search.first_image(query, backend.fold_in(proposals_seed, query)),
                lambda: search.step(z, direction, distance / ops.sqrt(t), query),
            )

        num_searched = of_round(starts + [_SEARCH] * len(samples))
        new, found, is_bad_too = search.to_boundary(proposal, num_searched)
        new_distance = search.length(new - x)
        better = found & (is_first | (new_distance < distance)) & self._goes_on(index, *state[1:])
        z = per_example_where(better, new, z)
        distance = ops.where(better, new_distance, distance)
        end = ops.where(better & is_first, of_round(ends + [0] * len(samples)), end)

        is_nearest = better if self.epsilon is None else better & (distance <= self.epsilon)
        x_adv = per_example_where(is_nearest, z, start)
        # NaN is never above 0: it would be taken for an image that does not fool.
        x_adv = per_example_where(is_bad | is_bad_too, ops.full_like(x, float("nan")), x_adv)
        num_queries = (num_samples + num_searched) * self.num_samples
        return RoundResult(x_adv, 0, num_queries, (z, distance, end))

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        del config["objective"]
        return {
            "epsilon": scheduled.saved(self.epsilon),
            "norm": self.norm,
            "num_queries": self.num_queries,
            **config,
        }
