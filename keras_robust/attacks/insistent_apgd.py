"""Targeted APGD that goes on where it has nearly succeeded."""

from typing import Any

import keras
from keras import ops

from keras_robust.attacks.apgd import APGD
from keras_robust.attacks.problem import Problem

# In doubt are examples whose margin has been brought to less than this share of what it was; to so
# many classes, and so many times to each, they are led.
_DOUBTFUL = 0.1
_NUM_TARGETS, _NUM_TIMES = 9, 2


@keras.saving.register_keras_serializable(package="keras_robust")
class InsistentAPGD(APGD):
    """Targeted APGD, which spends most on the examples that are in doubt.

    After the rounds of `kr.attacks.APGD`, one for each of the `num_targets` nearest classes, come
    rounds for the 9 nearest, twice each, for the examples alone whose largest margin so far is

        m > m(x) / 10,    m(x') = max_{j != y} z_j(x') - z_y(x')

    It is part of `kr.attacks.AutoAttack`: with a targeted loss and `target_order="distance"`.
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
