"""Targeted APGD that goes on where it has nearly succeeded."""

from typing import Any

import keras
from keras import ops

from keras_robust.attacks.apgd import APGD
from keras_robust.attacks.problem import Problem

# An example is in doubt if its margin has fallen below this share of what it is at `x`.
_DOUBTFUL = 0.1
# How many classes such an example is led to, and how many times to each.
_NUM_TARGETS, _NUM_TIMES = 9, 2


@keras.saving.register_keras_serializable(package="keras_robust")
class InsistentAPGD(APGD):
    """Targeted APGD that spends most on the examples in doubt.

    It first runs the rounds of `kr.attacks.APGD`, one for each of the `num_targets` nearest
    classes. Then it runs two more for each of the 9 nearest classes, on the examples in doubt:
    those whose largest margin so far is

        m > m(x) / 10,    m(x') = max_{j != y} z_j(x') - z_y(x')

    (Both are negative.) It is part of `kr.attacks.AutoAttack`, with a targeted loss and
    `target_order="distance"`.
    """

    def num_rounds(self, num_classes: int) -> int:
        return self.num_targets + _NUM_TIMES * min(_NUM_TARGETS, num_classes - 1)

    def initial_state(self, x: Any) -> tuple[Any, ...]:
        return *super().initial_state(x), ops.zeros((ops.shape(x)[0],), dtype=x.dtype)

    def is_active(self, index: Any, margin: Any, state: tuple[Any, ...]) -> Any:
        in_doubt = (margin > _DOUBTFUL * state[1]) | (index < self.num_targets)
        return super().is_active(index, margin, state) & in_doubt

    def ordered(self, problem: Problem, x: Any, scores: Any) -> tuple[Any, ...]:
        classes, num_gradients, num_evaluations = super().ordered(problem, x, scores)
        if self.objective is not None:
            num_evaluations = num_evaluations + 1
        margin = ops.cast(problem.margin_from(scores, x), x.dtype)
        return classes, margin, num_gradients, num_evaluations

    @property
    def num_ordered(self) -> int:
        return max(self.num_targets, _NUM_TARGETS)

    def place(self, index: Any, num_ordered: int) -> Any:
        further = (index - self.num_targets) % _NUM_TARGETS
        return ops.where(index < self.num_targets, index, further)
