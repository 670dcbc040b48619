"""The gradient ascents of `kr.attacks.APGD`, with adaptive step sizes."""

from collections.abc import Callable
from typing import Any

import numpy as np
from keras import ops

from keras_robust.attacks.problem import Problem
from keras_robust.ops.balls import (
    NEGLIGIBLE,
    dimensions,
    movable,
    per_example,
    projection,
    steepest_direction,
    steepest_step,
)
from keras_robust.types import Images, ScoreLoss, Tensor

_ALPHA = 0.75
# In L1, the first steps change this share of the values. After a checkpoint, steps change as many
# values as differ in `x_max`, divided by the second number.
_FIRST_SHARE, _SPARSITY_DIVISOR = 0.2, 1.5
# At a checkpoint in L1, the step size is divided by the first number, down to the second number
# times the radius. It is reset if fewer values differ in `x_max` than the third number times those
# at the previous checkpoint.
_STEP_DIVISOR, _SMALLEST_STEP, _SPARSER_BELOW = 1.5, 0.1, 0.95


def ascend(attack: Any, problem: Problem, loss: ScoreLoss, x: Images, start: Tensor) -> Tensor:
    """Ascends the loss in L-infinity or L2, and returns the iterate with the largest margin."""
    project = projection(x, attack.epsilon, attack.norm, attack.bounds)
    windows = ops.convert_to_tensor(checkpoint_windows(attack.num_steps))
    zeros = ops.sum(ops.reshape(ops.zeros_like(x), (ops.shape(x)[0], -1)), axis=1)

    def step(k: Tensor, state: dict[str, Any]) -> dict[str, Any]:
        x_k, rises, halved = state["x"], state["rises"], state["halved"]
        margins, values, gradient = problem.at(k).margin_loss_and_gradient(loss, x_k)
        values = ops.cast(values, x.dtype)
        found = _better(x_k, ops.cast(margins, x.dtype), *state["found"])
        rises = rises + ops.cast(values > state["loss"], x.dtype)
        current = (x_k, gradient, values)
        highest = _choose(values > state["highest"][2], current, state["highest"])

        window = ops.take(windows, k)
        at_checkpoint = window >= 0
        stalled = rises < attack.rho * ops.cast(window, x.dtype)
        risen = highest[2] > state["checked"]
        stuck = ops.logical_not(ops.logical_or(halved, risen))
        halve = ops.logical_and(at_checkpoint, ops.logical_or(stalled, stuck))
        x_k, gradient, values = _choose(halve, highest, current)
        eta = ops.where(halve, state["eta"] / 2, state["eta"])

        alpha = ops.where(k > 0, ops.cast(_ALPHA, x.dtype), ops.cast(1.0, x.dtype))
        z = project(x_k + per_example(eta, x) * steepest_direction(gradient, attack.norm))
        return {
            "x": project(x_k + alpha * (z - x_k) + (1 - alpha) * (x_k - state["before"])),
            "before": x_k,
            "loss": values,
            "eta": eta,
            "highest": highest,
            "found": found,
            "rises": ops.where(at_checkpoint, zeros, rises),
            "halved": ops.where(at_checkpoint, halve, halved),
            "checked": ops.where(at_checkpoint, highest[2], state["checked"]),
        }

    infinite = zeros + float("inf")
    state = {
        "x": start,
        "before": start,
        "loss": infinite,
        "eta": zeros + 2 * attack.epsilon,
        "highest": (start, ops.zeros_like(start), -infinite),
        "found": (start, -infinite),
        "rises": zeros,
        "halved": ops.ones_like(zeros, dtype="bool"),
        "checked": infinite,
    }
    return _best(problem, attack.num_steps, step, state)


def ascend_in_l1(
    attack: Any, problem: Problem, loss: ScoreLoss, x: Images, start: Tensor
) -> Tensor:
    """Ascends the loss in L1 by sparse steps, in balls that shrink to radius `epsilon`."""
    radii, places = phases(attack.num_steps)
    every = max(attack.num_steps // 25, 1)
    radii, places = ops.convert_to_tensor(radii), ops.convert_to_tensor(places)
    num_values = dimensions(x, attack.bounds)

    def num_changed(z: Tensor) -> Tensor:
        # A step and the projection may cancel out except for rounding errors.
        changed = ops.cast(ops.abs(z - x) > NEGLIGIBLE * attack.epsilon, x.dtype)
        return ops.sum(ops.reshape(changed, (ops.shape(x)[0], -1)), axis=1)

    def step(k: Tensor, state: dict[str, Any]) -> dict[str, Any]:
        x_k, place, factor = state["x"], ops.take(places, k), ops.take(radii, k)
        radius = attack.epsilon * ops.cast(factor, x.dtype)
        margins, values, gradient = problem.at(k).margin_loss_and_gradient(loss, x_k)
        values, margins = ops.cast(values, x.dtype), ops.cast(margins, x.dtype)
        # Images in the larger balls do not count, but a NaN margin there must be detected.
        counts = ops.logical_or(factor <= 1, ops.isnan(margins))
        found = _better(x_k, ops.where(counts, margins, -infinite), *state["found"])
        current, is_first = (x_k, gradient, values), place == 0
        higher = ops.logical_or(values > state["highest"][2], is_first)
        highest = _choose(higher, current, state["highest"])

        changed = num_changed(highest[0])
        at_checkpoint = place % every == 0
        is_sparser = ops.logical_or(changed < _SPARSER_BELOW * state["changed"], is_first)
        restarts = ops.logical_and(at_checkpoint, is_sparser)
        shorter = ops.maximum(state["share"] / _STEP_DIVISOR, _SMALLEST_STEP)
        share = ops.where(at_checkpoint, shorter, state["share"])
        share = ops.where(restarts, ops.ones_like(share), share)
        count = ops.where(at_checkpoint, changed // _SPARSITY_DIVISOR, state["count"])
        count = ops.where(k > 0, count, _FIRST_SHARE * num_values)
        x_k, gradient, _ = _choose(restarts, highest, current)

        can_move = movable(gradient, x_k, attack.epsilon, attack.bounds)
        slope = ops.where(can_move, gradient, ops.zeros_like(gradient))
        move = steepest_step(slope, per_example(share * radius, x), attack.norm, count)
        phase_ends = ops.take(places, k + 1) == 0
        target = ops.where(phase_ends, highest[0], x_k + move)
        next_radius = attack.epsilon * ops.cast(ops.take(radii, k + 1), x.dtype)
        return {
            "x": projection(x, next_radius, attack.norm, attack.bounds)(target),
            "highest": highest,
            "found": found,
            "share": share,
            "count": count,
            "changed": ops.where(at_checkpoint, changed, state["changed"]),
        }

    zeros = ops.sum(ops.reshape(ops.zeros_like(x), (ops.shape(x)[0], -1)), axis=1)
    infinite = zeros + float("inf")
    state = {
        "x": start,
        "highest": (start, ops.zeros_like(start), -infinite),
        "found": (start, -infinite),
        "share": ops.ones_like(zeros),
        "count": zeros,
        "changed": zeros,
    }
    return _best(problem, attack.num_steps, step, state)


def checkpoint_windows(num_steps: int) -> np.ndarray:
    """Returns the steps since the previous checkpoint for each checkpoint, and else -1."""
    percentages, width = [0], 22
    while percentages[-1] + width < 100:
        percentages.append(percentages[-1] + width)
        width = max(width - 3, 6)
    checkpoints = sorted({-(-percentage * num_steps // 100) for percentage in percentages})
    checkpoints = [checkpoint for checkpoint in checkpoints if checkpoint < num_steps]
    windows = np.full(num_steps, -1, "int32")
    windows[checkpoints] = np.diff(checkpoints, prepend=0)
    return windows


def phases(num_steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the radius of each L1 step in units of `epsilon`, and the step's place in its phase.

    Both arrays have one more entry, for the step that would come next.
    """
    lengths = [3 * num_steps // 10] * 2
    lengths.append(num_steps + 1 - sum(lengths))
    radii = np.repeat(np.array([3.0, 2.0, 1.0], "float32"), lengths)
    return radii, np.concatenate([np.arange(n, dtype="int32") for n in lengths])


def _best(problem: Problem, num_steps: int, step: Callable[..., Any], state: Any) -> Tensor:
    """Takes the steps, and returns the images with the largest margin.

    `step` evaluates the images that it starts from, so the last iterate is evaluated here.
    """
    state = problem.fori_loop(0, num_steps, step, state)
    x, found = state["x"], state["found"]
    margins = problem.at(num_steps).margin(x)
    return _better(x, ops.cast(margins, x.dtype), *found)[0]


def _choose(condition: Tensor, new: tuple[Tensor, ...], old: tuple[Tensor, ...]) -> tuple[Any, ...]:
    return tuple(ops.where(per_example(condition, a), a, b) for a, b in zip(new, old, strict=True))


def _better(x: Images, margins: Tensor, best: Tensor, best_margins: Tensor) -> tuple[Any, ...]:
    """Returns the images with the larger margin.

    An image with a NaN margin replaces any other and stays, so that the NaN is detected.
    """
    better = ops.logical_not(ops.logical_or(margins <= best_margins, ops.isnan(best_margins)))
    return _choose(better, (x, margins), (best, best_margins))
