"""An attack on arrays: round after round, each compiled once, on the examples not yet done."""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
from keras import ops

from keras_robust import backend
from keras_robust.attacks.inputs import working
from keras_robust.attacks.problem import Problem
from keras_robust.attacks.result import AttackResult, perturbation_norms
from keras_robust.attacks.without_gradient import may_stand
from keras_robust.model import classifier as inference
from keras_robust.ops import sparse_labels


class Rounds:
    """The best images that an attack has found so far, and what they have cost.

    Where the model's answer to an example depends on the others in its batch, every round gets
    the whole batch, and success is judged on the batch that is returned.

    Args:
        attack: `kr.attacks.Attack`.
        model: the model.
        x: array, shape `(batch_size, ...)`.
        y: array of labels, integer or one-hot.
        seed: seed of `keras_robust.backend`.
    """

    def __init__(self, attack: Any, model: Any, x: np.ndarray, y: np.ndarray, seed: Any) -> None:
        self.attack, self.model, self.x, self.y, self.seed = attack, model, x, y, seed
        self.state = tuple(np.array(value) for value in attack.initial_state(working(x)))
        self.best, self.margins = x.copy(), np.full(len(x), -np.inf)
        self.counts = np.zeros((2, len(x)), int)
        self.is_joint = inference.depends_on_batch(model)

    def run(self, num_rounds: int) -> AttackResult:
        try:
            self._run_all(num_rounds)
        except backend.NoGradientError:
            if not may_stand(self.attack):
                raise
        self._give_back_originals()
        norms = perturbation_norms(self.x, self.best)
        return AttackResult(self.best, self.margins > 0, norms, *self.counts)

    def _run_all(self, num_rounds: int) -> None:
        run_round = self._compiled("round", _traced_round, 3 + len(self.state))
        for index in range(num_rounds):
            active = np.flatnonzero(self.attack.is_active(index, self.margins, self.state))
            if len(active):
                self._run_round(run_round, index, active)

    def _run_round(self, run_round: Callable[..., Any], index: int, active: np.ndarray) -> None:
        batch, places = self._batch(active)
        images = (values[batch] for values in (self.x, self.y, self.best, *self.state))
        results = run_round(*images, np.int32(index), self.seed)
        num_computed = np.array([ops.convert_to_numpy(value) for value in results[2:4]], int)
        new, new_margins, *new_state = (
            ops.convert_to_numpy(values)[places] for values in (*results[:2], *results[4:])
        )
        self._check_finite(new, new_margins)
        better = self.attack.improves(
            self.x[active], new, new_margins, self.best[active], self.margins[active]
        )
        self.best[active[better]] = new[better]
        self.margins[active[better]] = new_margins[better]
        self.counts[:, active] += num_computed[:, None]
        for values, new_values in zip(self.state, new_state, strict=True):
            values[active] = new_values

    def _give_back_originals(self) -> None:
        """The original image for each that does not fool, and the margins of what is returned."""
        judge = self._compiled("margin", _traced_margin, 2)
        failed = np.flatnonzero(self.margins <= 0)
        unjudged = np.arange(len(self.x)) if self.is_joint else failed
        while len(unjudged):
            self.best[failed] = self.x[failed]
            batch, places = self._batch(unjudged)
            judged = ops.convert_to_numpy(judge(self.best[batch], self.y[batch], self.seed))
            self._check_finite(self.x[:1], judged)
            self.margins[unjudged] = judged[places]
            self.counts[1, unjudged] += 1
            # Originals among the images may save others that have fooled the model before.
            changed = (self.best != self.x).reshape(len(self.x), -1).any(axis=1)
            failed = np.flatnonzero(changed & (self.margins <= 0))
            unjudged = unjudged if self.is_joint and len(failed) else failed[:0]

    def _batch(self, indices: np.ndarray) -> tuple[np.ndarray, Any]:
        """What the model is run on for these examples, and where they are in it."""
        if self.is_joint:
            return np.arange(len(self.x)), indices
        batch = filled_up(self.attack, self.model, indices, len(self.x))
        return batch, slice(len(indices))

    def _compiled(
        self, name: str, function: Callable[..., Any], num_batched: int
    ) -> Callable[..., Any]:
        attack = copy.copy(self.attack)
        key = (name, type(attack), repr(sorted(vars(attack).items())))
        return backend.compiled(
            self.model,
            key,
            lambda *args: function(attack, *args),
            num_batched=num_batched if attack.takes_any_batch_size(self.model) else 0,
        )

    def _check_finite(self, x: np.ndarray, margins: np.ndarray) -> None:
        if not np.isfinite(x.astype("float32")).all() or np.isnan(margins).any():
            raise ValueError(
                f"{self.attack!r} came upon NaN or infinite values: the model's outputs or its "
                "gradient are not finite somewhere in the reach of the attack."
            )


def filled_up(attack: Any, model: Any, indices: np.ndarray, batch_size: int) -> np.ndarray:
    """The indices; where each size is compiled anew, filled up to one of a few sizes."""
    if attack.takes_any_batch_size(model):
        return indices
    while batch_size >= 4 * len(indices):
        batch_size //= 4
    return np.concatenate([indices, np.repeat(indices[-1:], batch_size - len(indices))])


def _traced_round(
    attack: Any, model: Any, x: Any, y: Any, start: Any, *rest: Any
) -> tuple[Any, ...]:
    """A round, judged on the images as they will be returned: clipped, in the dtype of `x`."""
    *state, index, seed = rest
    y = sparse_labels(y)
    x_adv, num_gradients, num_evaluations, *state = attack.round(
        model, x, y, working(start), state, index, seed
    )
    judge = attack.judge(model, y, seed, index, x.dtype)
    x_adv = judge.as_returned(x_adv)
    counts = (ops.cast(num_gradients, "int32"), ops.cast(num_evaluations + 1, "int32"))
    return ops.cast(x_adv, x.dtype), judge.margin(x_adv), *counts, *state


def _traced_margin(attack: Any, model: Any, x: Any, y: Any, seed: Any) -> Any:
    return Problem(attack, model, sparse_labels(y), seed).margin(working(x))
