"""The worst case of several attacks."""

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
from keras_robust.model.images import Images
from keras_robust.model.keys import value_key
from keras_robust.ops import per_example

# What must be the same for all attacks of an ensemble.
_COMMON = ("targeted", "bounds", "from_logits")


@keras.saving.register_keras_serializable(package="keras_robust")
class Ensemble(Attack):
    """Runs attacks one after the other, each on the examples on which those before it failed.

    The result is the worst case over all of them for each example, at less than the sum of their
    costs: an example counts as fooled by the first attack that fools the model on it, and keeps
    that attack's image. So an ensemble of attacks that look for the smallest perturbation
    (`kr.attacks.FAB` without `epsilon`, say) does not return the smallest of theirs. Where the
    model's answer depends on the batch (`kr.layers.WNLLHead` with `joint=True`), each attack gets
    the whole batch, and `success` is that in the batch of the attack which made the image.

    Args:
        attacks: sequence of `kr.attacks.Attack`s, at least one; a single attack is a sequence of
            one. They must agree in `targeted`, `bounds` and `from_logits`, which then are the
            ensemble's too. Cheap ones go first.

    Call arguments, returns: as `kr.attacks.PGD`; each attack keeps to its own ball.
    `run(model, x, y, seed=None, verbose=0)` shows with `verbose=1` which attack and which of its
    rounds runs, and about how long it will still take; in its result `num_gradients` and
    `num_evaluations` are the sums over the attacks. In `perturb`, where no
    example can be left out, the image with the largest margin is taken of the first attack and
    of those after it until one fools the model.

    Raises:
        ValueError: if `attacks` is empty, holds something else than attacks, or attacks that do
            not agree; when called, if one of them cannot work on `model`, `x` and `y`.

    Example:

    >>> import keras, numpy as np, keras_robust as kr
    >>> model = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten(),
    ...                           keras.layers.Dense(10)])
    >>> x, y = np.random.rand(4, 8, 8, 1).astype("float32"), np.array([3, 1, 4, 1])
    >>> attack = kr.attacks.Ensemble([
    ...     kr.attacks.FGSM(epsilon=8 / 255), kr.attacks.PGD(epsilon=8 / 255)])
    >>> attack.run(model, x, y, seed=0).success.shape
    (4,)
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

    def check_classifier(self, classifier: Classifier, x: np.ndarray | Images) -> None:
        for attack in self.attacks:
            attack.check_classifier(classifier, x)

    def round_costs(self, num_classes: int) -> list[Cost]:
        return [cost for attack in self.attacks for cost in attack.round_costs(num_classes)]

    def run_checked(
        self,
        classifier: Classifier,
        x: np.ndarray,
        y: np.ndarray,
        seed: Any = None,
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
        num_done, noted = 0, journal.read()
        if noted:
            best, success = noted["best"].view(x.dtype), noted["success"]
            counts, without_gradient = noted["counts"], noted["without_gradient"].tolist()
            num_done = int(noted["num_done"])
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
                if number + 1 < len(self.attacks):  # After the last, the whole batch is noted.
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
        self, classifier: Classifier, x: Any, labels: Any, seed: Any, mask: Any = None
    ) -> Any:
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

    def at(self, iterations: Any, dtype: Any = "float32") -> Self:
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
        given = iter(values)
        parts = [
            attack.with_data([next(given) for _ in range(attack.num_data)], dtype)
            for attack in self.attacks
        ]
        return self.changed(attacks=parts)

    def get_config(self) -> dict[str, Any]:
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
