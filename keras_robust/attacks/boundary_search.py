"""The search of `kr.attacks.HopSkipJump` in one round.

It only observes whether images fool the model.
"""

import math
from collections.abc import Callable
from typing import Any

from keras import ops

from keras_robust import backend
from keras_robust.attacks.problem import Problem
from keras_robust.ops.balls import (
    euclidean_norm,
    maximum_norm,
    per_example,
    per_example_where,
    projection,
    steepest_direction,
)
from keras_robust.types import Images, Seed, Tensor

NORMS = {"linf": maximum_norm, "l2": euclidean_norm}
# Possible numbers of images per example in one batch of queries. The number of samples for a normal
# is a multiple of the first.
AT_ONCE = (20, 5, 1)
# A batch of queries holds at most this many values, unless one image per example exceeds it.
_LARGEST_BATCH = 2**23
# Queries differ from the image by at least this many times the spacing of its values, on average.
_ABOVE_ROUNDING = 2.0


class BoundarySearch:
    """Searches for the boundary between images that fool the model and images that do not.

    Args:
        problem: the `Problem`, whose margins tell whether an image fools the model.
        x: tensor, the original images.
        norm: `"l2"` or `"linf"`, the norm to minimise.
        bounds: pair of floats. Valid range of `x`.
    """

    def __init__(self, problem: Problem, x: Images, norm: str, bounds: tuple[float, float]) -> None:
        self.problem, self.x, self.norm, self.bounds = problem, x, norm, bounds
        self.distance = NORMS[norm]
        self.shape = tuple(x.shape[1:])
        self.num_values = math.prod(self.shape)

    def normal(
        self, z: Tensor, distance: Tensor, num_samples: Any, seed: Seed
    ) -> tuple[Tensor, Tensor]:
        """Estimates the boundary's normal at `z`, towards images that fool the model.

        `sum_b (phi_b - mean(phi)) u_b`, where `phi_b` is 1 if `z + delta u_b` fools the model and
        -1 otherwise. This is the normal times a positive number.

        Args:
            z: tensor, images at the boundary.
            distance: their distances to `x`.
            num_samples: int tensor, a multiple of `AT_ONCE[0]`.
            seed: the seed of the directions `u_b`.

        Returns:
            The normals, and a bool tensor that marks examples for which the model's outputs were
            NaN.
        """
        x, num_examples = self.x, ops.shape(self.x)[0]
        count = self._at_once(num_examples)
        delta, centre = self._delta(distance), ops.reshape(z, (num_examples, 1, self.num_values))
        problem = self.problem.at(0).with_labels(ops.repeat(self.problem.y, count, axis=0))

        def by_example(values: Tensor) -> Tensor:
            return ops.reshape(values, (num_examples, count, *values.shape[1:]))

        def unfinished(number: Tensor, *sums: Any) -> Tensor:
            return number * count < num_samples

        def evaluate(
            number: Tensor, signed: Tensor, plain: Tensor, balance: Tensor, is_nan: Tensor
        ) -> Any:
            shape = (num_examples, count, self.num_values)
            draws = backend.normal(shape, backend.fold_in(seed, number), x.dtype)
            lengths = ops.sqrt(ops.sum(ops.square(draws), axis=2, keepdims=True))
            images = centre + draws * (per_example(delta, draws) / lengths)
            images = ops.reshape(problem.as_returned(images), (-1, *self.shape))
            margin = problem.at(number).margin(images)
            phi = by_example(ops.cast(ops.where(margin > 0, 1.0, -1.0), x.dtype))
            weights = ops.stack([phi, ops.ones_like(phi)], axis=1)
            # Use the actual perturbation, after rounding and clipping.
            sums = ops.matmul(weights, ops.reshape(images, shape) - centre)
            return (
                number + 1,
                signed + sums[:, 0],
                plain + sums[:, 1],
                balance + ops.sum(phi, axis=1),
                ops.logical_or(is_nan, ops.any(by_example(ops.isnan(margin)), axis=1)),
            )

        zero = ops.zeros_like(distance)
        zeros = ops.zeros_like(centre[:, 0])
        state = (_first(), zeros, zeros, zero, zero > 0)
        _, signed, plain, balance, is_nan = self.problem.while_loop(unfinished, evaluate, state)
        total = ops.maximum(ops.cast(num_samples, x.dtype), 1.0)
        # If all images are on one side, subtracting the mean would leave a normal of 0.
        mean = ops.where(ops.abs(balance) < total, balance / total, zero)
        normal = (signed - per_example(mean, plain) * plain) / per_example(delta, plain)
        return ops.reshape(normal, ops.shape(x)), is_nan

    def to_boundary(
        self, proposal: Callable[[Tensor], Tensor], num_queries: Any
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Tries proposals until one fools the model, then bisects towards `x`.

        Args:
            proposal: function from the number of the query to images.
            num_queries: int tensor, number of queries for both parts.

        Returns:
            The nearest images that fool the model, their distances to `x`, whether there are any,
            and a bool tensor that marks examples for which the model's outputs were NaN.
        """
        problem = self.problem.at(1)

        def unfinished(query: Tensor, *rest: Any) -> Tensor:
            return query < num_queries

        def evaluate(
            query: Tensor,
            far: Tensor,
            near: Tensor,
            low: Tensor,
            high: Tensor,
            found: Tensor,
            is_nan: Tensor,
        ) -> Any:
            middle = (low + high) / 2
            image = per_example_where(found, self.between(far, middle), proposal(query))
            image = problem.as_returned(image)
            margin = problem.at(query).margin(image)
            is_fooled = margin > 0
            return (
                query + 1,
                per_example_where(found, far, image),
                per_example_where(is_fooled, image, near),
                ops.where(ops.logical_and(found, ops.logical_not(is_fooled)), middle, low),
                ops.where(ops.logical_and(found, is_fooled), middle, high),
                ops.logical_or(found, is_fooled),
                ops.logical_or(is_nan, ops.isnan(margin)),
            )

        zero = ops.zeros_like(self.distance(self.x))
        state = (_first(), self.x, self.x, zero, ops.ones_like(zero), zero > 0, zero > 0)
        _, _, near, _, _, found, is_nan = problem.while_loop(unfinished, evaluate, state)
        return near, self.distance(near - self.x), found, is_nan

    def between(self, far: Tensor, share: Tensor) -> Tensor:
        """Projects `far` to the ball around `x` of radius `share * ||far - x||`."""
        radius = share * self.distance(far - self.x)
        radius = per_example(radius, self.x) if self.norm == "linf" else radius
        return projection(self.x, radius, self.norm, self.bounds)(far)

    def step(self, z: Tensor, normal: Tensor, size: Tensor, query: Tensor) -> Tensor:
        """Steps from `z` along the normal, half as far with each query."""
        size = size * 0.5 ** ops.cast(query, size.dtype)
        step = per_example(size, z) * steepest_direction(normal, self.norm)
        return ops.clip(z + step, *self.bounds)

    def start(self, query: Tensor, seed: Seed) -> Tensor:
        """Proposes the original images first, then noise and other images of the batch in turn."""
        x, num_examples = self.x, ops.shape(self.x)[0]
        noise = backend.uniform(ops.shape(x), backend.fold_in(seed, 0), *self.bounds, x.dtype)
        draw = backend.uniform((1,), backend.fold_in(seed, 1), 0.0, 1.0, "float32")[0]
        shift = 1 + ops.cast(draw * ops.cast(num_examples - 1, "float32"), "int32")
        places = (ops.arange(num_examples, dtype="int32") + shift) % num_examples
        image = ops.where(query % 2 == 1, noise, ops.take(x, places, axis=0))
        return ops.where(query == 0, x, image)

    def _delta(self, distance: Tensor) -> Tensor:
        """Returns the L2 distance from the boundary at which to query the model."""
        share = self.num_values if self.norm == "l2" else math.sqrt(self.num_values)
        least = _ABOVE_ROUNDING * self.problem.spacing * math.sqrt(self.num_values)
        is_known = distance < float("inf")
        return ops.maximum(ops.where(is_known, distance / share, ops.zeros_like(distance)), least)

    def _at_once(self, num_examples: Any) -> Any:
        """Returns the number of images per example in one batch of queries."""
        if self.problem.depends_on_batch:
            return 1
        limit = max(_LARGEST_BATCH // self.num_values, 1)
        if isinstance(num_examples, int):
            return next((n for n in AT_ONCE if n * num_examples <= limit), 1)
        count = ops.ones_like(num_examples)
        for larger in reversed(AT_ONCE):
            count = ops.where(larger * num_examples <= limit, larger, count)
        return count


def _first() -> Tensor:
    """Returns 0, the counter of a loop's first iteration, as a tensor."""
    return ops.convert_to_tensor(0, dtype="int32")
