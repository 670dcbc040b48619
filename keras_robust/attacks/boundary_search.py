"""What HopSkipJump does in a round: it asks whether images fool the model, and nothing else."""

import math
from collections.abc import Callable
from typing import Any

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
# So many images near each example the model is asked about at once. Directions are estimated from
# multiples of the first.
AT_ONCE = (20, 5, 1)
# Fewer, where all of them would have more values than this.
_LARGEST_BATCH = 2**23
# What is asked about differs from the image by this many times what rounding can hide.
_ABOVE_ROUNDING = 2.0


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
        self.distance = NORMS[norm]
        self.shape = tuple(x.shape[1:])
        self.num_values = math.prod(self.shape)

    def normal(self, z: Any, distance: Any, num_samples: Any, seed: Any) -> tuple[Any, Any]:
        """The boundary's normal at `z`, towards images that fool, times a positive number.

        `sum_b (phi_b - mean(phi)) u_b`, where `phi_b` is 1 where `z + delta u_b` fools, else -1.

        Args:
            z: tensor, images at the boundary.
            distance: their distances to `x`.
            num_samples: int tensor, a multiple of `AT_ONCE[0]`.
            seed: for `u_b`.

        Returns:
            The normals, and for which examples the model's outputs were NaN.
        """
        x, num_examples = self.x, ops.shape(self.x)[0]
        count = self._at_once(num_examples)
        delta, centre = self._delta(distance), ops.reshape(z, (num_examples, 1, self.num_values))
        problem = self.problem.at(0).with_labels(ops.repeat(self.problem.y, count, axis=0))

        def by_example(values: Any) -> Any:
            return ops.reshape(values, (num_examples, count, *values.shape[1:]))

        def unfinished(number: Any, *sums: Any) -> Any:
            return number * count < num_samples

        def ask(number: Any, signed: Any, plain: Any, balance: Any, is_nan: Any) -> Any:
            shape = (num_examples, count, self.num_values)
            draws = backend.normal(shape, backend.fold_in(seed, number), x.dtype)
            lengths = ops.sqrt(ops.sum(ops.square(draws), axis=2, keepdims=True))
            images = centre + draws * (per_example(delta, draws) / lengths)
            images = ops.reshape(problem.as_returned(images), (-1, *self.shape))
            margin = problem.at(number).margin(images)
            phi = by_example(ops.cast(ops.where(margin > 0, 1.0, -1.0), x.dtype))
            weights = ops.stack([phi, ops.ones_like(phi)], axis=1)
            # By `delta u_b` as it has been rounded and clipped.
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
        _, signed, plain, balance, is_nan = self.problem.while_loop(unfinished, ask, state)
        total = ops.maximum(ops.cast(num_samples, x.dtype), 1.0)
        # Where all images are on one side, what is left of the mean would be nothing.
        mean = ops.where(ops.abs(balance) < total, balance / total, zero)
        normal = (signed - per_example(mean, plain) * plain) / per_example(delta, plain)
        return ops.reshape(normal, ops.shape(x)), is_nan

    def to_boundary(
        self, proposal: Callable[[Any], Any], num_queries: Any
    ) -> tuple[Any, Any, Any, Any]:
        """Tries proposals until one fools, and with the queries that are left brings that nearer.

        Args:
            proposal: function of the number of the query, to images.
            num_queries: int tensor.

        Returns:
            The nearest images that fool, their distances to `x`, whether there are any, and for
            which examples the model's outputs were NaN.
        """
        problem = self.problem.at(1)

        def unfinished(query: Any, *rest: Any) -> Any:
            return query < num_queries

        def ask(
            query: Any, far: Any, near: Any, low: Any, high: Any, found: Any, is_nan: Any
        ) -> Any:
            middle = (low + high) / 2
            image = per_example_where(found, self.between(far, middle), proposal(query))
            image = problem.as_returned(image)
            margin = problem.at(query).margin(image)
            fools = margin > 0
            return (
                query + 1,
                per_example_where(found, far, image),
                per_example_where(fools, image, near),
                ops.where(ops.logical_and(found, ops.logical_not(fools)), middle, low),
                ops.where(ops.logical_and(found, fools), middle, high),
                ops.logical_or(found, fools),
                ops.logical_or(is_nan, ops.isnan(margin)),
            )

        zero = ops.zeros_like(self.distance(self.x))
        state = (_first(), self.x, self.x, zero, ops.ones_like(zero), zero > 0, zero > 0)
        _, _, near, _, _, found, is_nan = problem.while_loop(unfinished, ask, state)
        return near, self.distance(near - self.x), found, is_nan

    def between(self, far: Any, share: Any) -> Any:
        """`far` projected to the ball around `x` whose radius is a share of its distance."""
        radius = share * self.distance(far - self.x)
        radius = per_example(radius, self.x) if self.norm == "linf" else radius
        return projection(self.x, radius, self.norm, self.bounds)(far)

    def step(self, z: Any, normal: Any, size: Any, query: Any) -> Any:
        """From `z` to where images fool, half as far with each query."""
        size = size * 0.5 ** ops.cast(query, size.dtype)
        step = per_example(size, z) * steepest_direction(normal, self.norm)
        return ops.clip(z + step, *self.bounds)

    def start(self, query: Any, seed: Any) -> Any:
        """The original images; then noise and other images of the batch by turns."""
        x, num_examples = self.x, ops.shape(self.x)[0]
        noise = backend.uniform(ops.shape(x), backend.fold_in(seed, 0), *self.bounds, x.dtype)
        draw = backend.uniform((1,), backend.fold_in(seed, 1), 0.0, 1.0, "float32")[0]
        shift = 1 + ops.cast(draw * ops.cast(num_examples - 1, "float32"), "int32")
        places = (ops.arange(num_examples, dtype="int32") + shift) % num_examples
        image = ops.where(query % 2 == 1, noise, ops.take(x, places, axis=0))
        return ops.where(query == 0, x, image)

    def _delta(self, distance: Any) -> Any:
        """How far from the boundary the model is asked, in the L2 norm."""
        share = self.num_values if self.norm == "l2" else math.sqrt(self.num_values)
        least = _ABOVE_ROUNDING * self.problem.spacing * math.sqrt(self.num_values)
        is_known = distance < float("inf")
        return ops.maximum(ops.where(is_known, distance / share, ops.zeros_like(distance)), least)

    def _at_once(self, num_examples: Any) -> Any:
        """How many images near each example the model is asked about in one batch."""
        if self.problem.depends_on_batch:
            return 1
        limit = max(_LARGEST_BATCH // self.num_values, 1)
        if isinstance(num_examples, int):
            return next((n for n in AT_ONCE if n * num_examples <= limit), 1)
        count = ops.ones_like(num_examples)
        for larger in reversed(AT_ONCE):
            count = ops.where(larger * num_examples <= limit, larger, count)
        return count


def _first() -> Any:
    """The number of a loop's first round."""
    return ops.convert_to_tensor(0, dtype="int32")
