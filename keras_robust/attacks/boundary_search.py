"""What `kr.attacks.HopSkipJump` does in one round: it asks whether images fool the model."""

from collections.abc import Callable
from typing import Any

import math
from keras import ops

from keras_robust import backend
from keras_robust.attacks.problem import Problem
from keras_robust.ops import (
    euclidean_norm,
    maximum_norm,
    per_example,
    per_example_where,
    projection,
    steepest_direction,
)

NORMS = {"linf": maximum_norm, "l2": euclidean_norm}
# How many values the images have at most that the model is asked about at once, unless a single
# one for each example has more.
_VALUES_AT_ONCE = 2**23
# Of each example at once. They divide the number that a direction is estimated from.
_AT_ONCE = (20, 5)


class BoundarySearch:
    """Looks for the boundary between images that fool the model and those that do not.

    Args:
        problem: what can be asked of the model.
        x: tensor, the original images.
        norm: `"l2"` or `"linf"`, what is to be small.
        bounds: pair of floats. Valid range of `x`.
    """

    def __init__(self, problem: Problem, x: Any, norm: str, bounds: tuple[float, float]) -> None:
        self.problem, self.x, self.norm, self.bounds = problem, x, norm, bounds
        self.length = NORMS[norm]
        self.num_values = math.prod(x.shape[1:])

    def direction(
        self, z: Any, distance: Any, num_samples: Any, seed: Any
    ) -> tuple[Any, Any]:
        """The estimated direction from the boundary to where images fool, and what was NaN."""
        x = self.x
        shape = tuple(x.shape[1:])
        num_examples = ops.shape(x)[0]
        count = self._at_once(num_examples)
        labels = ops.broadcast_to(ops.expand_dims(self.problem.y, 1), (num_examples, count))
        problem = self.problem.with_labels(ops.reshape(labels, (-1,)))
        distance = ops.where(distance < float("inf"), distance, ops.zeros_like(distance))
        delta = self._delta(distance)
        centre = ops.expand_dims(z, 1)

        def unfinished(number: Any, *sums: Any) -> Any:
            return number * count < num_samples

        def ask(number: Any, with_sign: Any, plain: Any, votes: Any, bad: Any) -> Any:
            draws = backend.normal(
                (num_examples * count, *shape), backend.fold_in(seed, number), x.dtype
            )
            u = ops.reshape(steepest_direction(draws, "l2"), (num_examples, count, *shape))
            images = centre + ops.reshape(delta, (-1,) + (1,) * len(x.shape)) * u
            images = problem.as_returned(ops.reshape(images, (-1, *shape)))
            margin = problem.at(number).margin(images)
            u = ops.reshape(images, (num_examples, count, *shape)) - centre
            sign = ops.where(margin > 0, 1.0, -1.0)
            sign = ops.cast(ops.reshape(sign, (num_examples, count)), x.dtype)
            is_bad = ops.any(ops.reshape(ops.isnan(margin), (num_examples, count)), axis=1)
            weights = ops.reshape(sign, (num_examples, count) + (1,) * len(shape))
            return (
                number + 1,
                with_sign + ops.sum(weights * u, axis=1),
                plain + ops.sum(u, axis=1),
                votes + ops.sum(sign, axis=1),
                ops.logical_or(bad, is_bad),
            )

        zero = ops.zeros_like(distance)
        state = (0, ops.zeros_like(x), ops.zeros_like(x), zero, zero > 0)
        _, with_sign, plain, votes, bad = self.problem.while_loop(unfinished, ask, state)
        total = ops.maximum(ops.cast(num_samples, x.dtype), 1.0)
        mean = ops.where(ops.abs(votes) < total, votes / total, zero)
        return steepest_direction(with_sign - per_example(mean, x) * plain, self.norm), bad

    def to_boundary(
        self, proposal: Callable[[Any], Any], num_queries: Any
    ) -> tuple[Any, Any, Any]:
        x = self.x

        def unfinished(query: Any, *rest: Any) -> Any:
            return query < num_queries

        def ask(
            query: Any, far: Any, image: Any, low: Any, high: Any, found: Any, bad: Any
        ) -> Any:
            middle = (low + high) / 2
            tried = per_example_where(found, self.between(far, middle), proposal(query))
            tried = self.problem.as_returned(tried)
            margin = self.problem.at(-1 - query).margin(tried)
            fools = margin > 0
            return (
                query + 1,
                per_example_where(fools & ~found, tried, far),
                per_example_where(fools, tried, image),
                ops.where(found & ~fools, middle, low),
                ops.where(found & fools, middle, high),
                found | fools,
                bad | ops.isnan(margin),
            )

        zero = ops.zeros_like(self.length(x))
        no = zero > 0
        state = (0, x, x, zero, ops.ones_like(zero), no, no)
        _, _, image, _, _, found, bad = self.problem.while_loop(unfinished, ask, state)
        return image, found, bad

    def between(self, far: Any, share: Any) -> Any:
        """`far` projected to the ball around `x` of a share of its distance."""
        radius = share * self.length(far - self.x)
        radius = per_example(radius, self.x) if self.norm == "linf" else radius
        return projection(self.x, radius, self.norm, self.bounds)(far)

    def step(self, z: Any, direction: Any, size: Any, query: Any) -> Any:
        """From `z` along the direction, half as far with each query."""
        size = size * 0.5 ** ops.cast(query, size.dtype)
        return ops.clip(z + per_example(size, z) * direction, *self.bounds)

    def first_image(self, query: Any, seed: Any) -> Any:
        """The original image; noise; another image of the batch; noise; and so on."""
        x = self.x
        noise = backend.uniform(ops.shape(x), backend.fold_in(seed, 0), *self.bounds, x.dtype)
        num_examples = ops.shape(x)[0]
        draw = backend.uniform((1,), backend.fold_in(seed, 1), 0.0, 1.0, "float32")[0]
        others = ops.cast(num_examples - 1, "float32")
        shift = 1 + ops.cast(draw * others, "int32")
        places = (ops.arange(num_examples, dtype="int32") + shift) % num_examples
        image = ops.where(query % 2 == 1, noise, ops.take(x, places, axis=0))
        return ops.where(query == 0, x, image)

    def _at_once(self, num_examples: Any) -> Any:
        if self.problem.depends_on_batch:
            return 1
        limit = max(_VALUES_AT_ONCE // self.num_values, 1)
        first, second = _AT_ONCE
        if isinstance(num_examples, int):
            return next((n for n in _AT_ONCE if n * num_examples <= limit), 1)
        smaller = ops.where(second * num_examples <= limit, second, 1)
        return ops.where(first * num_examples <= limit, first, smaller)

    def _delta(self, distance: Any) -> Any:
        least = 2 * self.problem.spacing * math.sqrt(self.num_values)
        return ops.maximum(distance / self.num_values, least)
