"""Ensembles of attacks, for the worst case over several attacks."""

from collections.abc import Hashable, Sequence
from typing import Any, Self

import keras
import numpy as np
from keras import ops

from keras_robust import backend
from keras_robust.attacks.attack import Attack
from keras_robust.attacks.inputs import as_seed, as_working_dtype, drawn_seed
from keras_robust.attacks.journal import Journal
from keras_robust.attacks.meter import Cost
from keras_robust.attacks.problem import Problem
from keras_robust.attacks.result import AttackResult, perturbation_norms
from keras_robust.attacks.rounds import filled_up
from keras_robust.model.classifier import Classifier
from keras_robust.model.images import LazyImages
from keras_robust.model.keys import value_key
from keras_robust.ops.balls import per_example
from keras_robust.types import Config, Images, Labels, Seed, Tensor

# Attributes that all attacks of an ensemble must share.
_COMMON = ("targeted", "bounds", "from_logits")


@keras.saving.register_keras_serializable(package="keras_robust")
class Ensemble(Attack):
    """Runs several attacks in turn and keeps the worst case for each example.

    Each attack runs only on the examples that no earlier attack has fooled. An example counts as
    fooled by the first attack that succeeds on it, and keeps that attack's image. The ensemble
    therefore costs less than the sum of its attacks. Put cheap attacks first.

    Args:
        attacks: sequence of `kr.attacks.Attack` instances, at least one. A single attack counts as
            a sequence of one. All attacks must have the same `targeted`, `bounds` and
            `from_logits`, which become those of the ensemble.

    Call arguments:
        Same as `kr.attacks.PGD`. `run(model, x, y, seed=None, verbose=0)` with `verbose=1` shows
        the current attack, its current round and an estimate of the remaining time.

    Returns:
        Same as `kr.attacks.PGD`. Each attack stays in its own ball. In the result of `run`,
        `num_gradients` and `num_evaluations` are sums over the attacks.

    Raises:
        ValueError: if `attacks` is empty, contains anything other than attacks, or contains attacks
            that differ in `targeted`, `bounds` or `from_logits`; when called, if one of the attacks
            does not support `model`, `x` and `y`.

    Example:

    >>> import keras, numpy as np, keras_robust as kr
    >>> model = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten(),
    ...                           keras.layers.Dense(10)])
    >>> x, y = np.random.rand(4, 8, 8, 1).astype("float32"), np.array([3, 1, 4, 1])
    >>> attack = kr.attacks.Ensemble([
    ...     kr.attacks.FGSM(epsilon=8 / 255), kr.attacks.PGD(epsilon=8 / 255)])
    >>> attack.run(model, x, y, seed=0).success.shape
    (4,)

    Since the first successful attack decides, an ensemble of attacks that minimise the perturbation
    (such as `kr.attacks.FAB` without `epsilon`) does not return the smallest of their
    perturbations.

    `perturb` cannot drop examples. For each example it compares the images of the attacks up to the
    first attack that fools the model, and keeps the image with the largest margin.

    If predictions depend on the batch (`kr.layers.WNLLHead` with `joint=True`), each attack gets
    the whole batch. `success` then refers to the batch in which the attack produced the image.
    """

    def __init__(self, attacks: Sequence[Attack] | Attack) -> None:
        given = [attacks] if isinstance(attacks, Attack) else attacks
        self.attacks = list(given) if isinstance(given, Sequence) else []
        if not self.attacks or not all(isinstance(attack, Attack) for attack in self.attacks):
            raise ValueError(
                "Argument `attacks` must be a sequence of at least one "
                f"`keras_robust.attacks.Attack`. Received: attacks={attacks!r}"
            )
        common = {}
        for name in _COMMON:
            values = [getattr(attack, name) for attack in self.attacks]
            if any(value_key(value) != value_key(values[0]) for value in values):
                raise ValueError(
                    f"The attacks in argument `attacks` must have the same `{name}`. "
                    f"Received: {values}"
                )
            common[name] = values[0]
        num_samples = max(attack.num_samples for attack in self.attacks)
        super().__init__(**common, num_samples=num_samples)

    def check_classifier(self, classifier: Classifier, x: np.ndarray | LazyImages) -> None:
        for attack in self.attacks:
            attack.check_classifier(classifier, x)

    def round_costs(self, num_classes: int) -> list[Cost]:
        return [cost for attack in self.attacks for cost in attack.round_costs(num_classes)]

    def run_checked(
        self,
        classifier: Classifier,
        x: np.ndarray,
        y: np.ndarray,
        seed: Seed = None,
        needs_gradient: bool = True,
        journal: Journal | None = None,
        mask: np.ndarray | None = None,
    ) -> AttackResult:
        seed = drawn_seed() if seed is None else as_seed(seed)
        journal = journal or Journal()
        is_joint = classifier.depends_on_batch
        best, success = x.copy(), np.zeros(len(x), bool)
        counts = np.zeros((2, len(x)), int)
        without_gradient: list[str] = []
        num_done, saved = 0, journal.read()
        if saved:
            best, success = saved["best"].view(x.dtype), saved["success"]
            counts, without_gradient = saved["counts"], saved["without_gradient"].tolist()
            num_done = int(saved["num_done"])
        position = 0
        for number, attack in enumerate(self.attacks):
            remaining = np.flatnonzero(~success)
            where = f"{type(attack).__name__} {number + 1}/{len(self.attacks)}"
            member = journal.member(number, where, position)
            position += len(attack.round_costs(classifier.num_classes))
            if number >= num_done and len(remaining):
                batch = filled_up(self, classifier, remaining, len(x))
                places: Any = slice(len(remaining))
                if is_joint:
                    batch, places = np.arange(len(x)), remaining
                result = attack.run_checked(
                    classifier,
                    x[batch],
                    y[batch],
                    backend.fold_in(seed, number),
                    needs_gradient=needs_gradient,
                    journal=member,
                    mask=None if mask is None else mask[batch],
                )
                best[remaining] = result.x_adv[places]
                success[remaining] = result.success[places]
                new_counts = np.array([result.num_gradients, result.num_evaluations])
                counts[:, remaining] += new_counts[:, places]
                without_gradient += result.without_gradient
                if number + 1 < len(self.attacks):  # The caller saves the final result.
                    journal.write(
                        num_done=np.array(number + 1),
                        best=best,
                        success=success,
                        counts=counts,
                        without_gradient=np.array(without_gradient, str),
                    )
        names = tuple(dict.fromkeys(without_gradient))
        return AttackResult(
            best,
            success,
            perturbation_norms(x, best),
            num_gradients=counts[0],
            num_evaluations=counts[1],
            without_gradient=names,
        )

    def perturb_images(
        self, classifier: Classifier, x: Images, labels: Labels, seed: Seed, mask: Tensor = None
    ) -> Tensor:
        first_seed = backend.fold_in(seed, 0)
        best = self.attacks[0].perturb_images(classifier, x, labels, first_seed, mask)
        if len(self.attacks) > 1:
            judge = Problem(self, classifier, labels, seed)
            margin = judge.margin(as_working_dtype(best))
            for number, attack in enumerate(self.attacks[1:], start=1):
                own_seed = backend.fold_in(seed, number)
                new = attack.perturb_images(classifier, x, labels, own_seed, mask)
                new_margin = judge.margin(as_working_dtype(new))
                better = ops.logical_and(margin <= 0, new_margin > margin)
                best = ops.where(per_example(better, new), new, best)
                margin = ops.where(better, new_margin, margin)
        return best

    def at(self, iterations: Tensor, dtype: Any = "float32") -> Self:
        return self.changed(attacks=[attack.at(iterations, dtype) for attack in self.attacks])

    @property
    def variables(self) -> list[keras.Variable]:
        return [variable for attack in self.attacks for variable in attack.variables]

    @property
    def given(self) -> list[str]:
        return []

    @property
    def num_data(self) -> int:
        return sum(attack.num_data for attack in self.attacks)

    @property
    def key(self) -> Hashable:
        return type(self), tuple(attack.key for attack in self.attacks)

    def data_arrays(self) -> list[np.ndarray]:
        return [value for attack in self.attacks for value in attack.data_arrays()]

    def with_data(self, values: Sequence[Any], dtype: Any) -> Self:
        remaining = iter(values)
        parts = [
            attack.with_data([next(remaining) for _ in range(attack.num_data)], dtype)
            for attack in self.attacks
        ]
        return self.changed(attacks=parts)

    def get_config(self) -> Config:
        return {"attacks": [keras.saving.serialize_keras_object(attack) for attack in self.attacks]}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "Ensemble":
        attacks = [
            keras.saving.deserialize_keras_object(attack) if isinstance(attack, dict) else attack
            for attack in config["attacks"]
        ]
        return cls(attacks)

    def takes_any_batch_size(self, classifier: Classifier) -> bool:
        return all(attack.takes_any_batch_size(classifier) for attack in self.attacks)
