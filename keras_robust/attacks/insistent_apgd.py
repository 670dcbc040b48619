"""Targeted APGD that restarts only on nearly fooled examples."""

from typing import Any

import keras
from keras import ops

from keras_robust.attacks.apgd import APGD
from keras_robust.attacks.problem import Problem
from keras_robust.types import Images, Scores, Tensor

# An example is nearly fooled if its margin has shrunk below this fraction of the margin at `x`.
_NEARLY_FOOLED = 0.06


@keras.saving.register_keras_serializable(package="keras_robust")
class InsistentAPGD(APGD):
    """Runs targeted APGD, and restarts it only on nearly fooled examples.

    After one round for each of the `num_targets` nearest classes, the attack continues only with
    the examples whose largest margin `m` so far satisfies

        m > 0.06 m(x),    m(x') = max_{j != y} z_j(x') - z_y(x')

    (Both margins are negative.) It is part of `kr.attacks.AutoAttack`, with a targeted loss and
    `target_order="distance"`.
    """

    def initial_state(self, x: Images) -> tuple[Any, ...]:
        return *super().initial_state(x), ops.zeros((ops.shape(x)[0],), dtype=x.dtype)

    def is_active(self, index: Tensor, margin: Tensor, state: tuple[Tensor, ...]) -> Tensor:
        is_selected = (margin > _NEARLY_FOOLED * state[1]) | (index < self.num_targets)
        return super().is_active(index, margin, state) & is_selected

    def ordered(self, problem: Problem, x: Images, scores: Scores) -> tuple[Any, ...]:
        classes, num_gradients, num_evaluations = super().ordered(problem, x, scores)
        if self.objective is not None:
            num_evaluations = num_evaluations + 1
        margin = ops.cast(problem.margin_from(scores, x), x.dtype)
        return classes, margin, num_gradients, num_evaluations
