"""The base class of all attacks."""

import inspect
import random
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_robust import backend, validation
from keras_robust.attacks.inputs import as_seed, working
from keras_robust.attacks.problem import Problem
from keras_robust.attacks.result import AttackResult
from keras_robust.attacks.rounds import Rounds
from keras_robust.model import classifier as inference
from keras_robust.ops import per_example_where, sparse_labels

# What a round's seed is folded with for the draws of a random model: in the attack, to judge it.
_ATTACKED, _JUDGED = 1_000_001, 1_000_002


class Attack:
    """Base class: holds an attack's configuration, checks the input, runs the attack compiled.

    An attack is called as `attack(model, x, y, seed=None)` and returns `x_adv`; an example on
    which it fails keeps its original image. `attack.run(model, x, y, seed=None)` returns a
    `kr.attacks.AttackResult` that tells more, and `attack.perturb(model, x, y, seed)` is for
    training. The model runs in inference mode (`training=False`): batch-norm statistics are used
    and stay as they are.

    A subclass implements `generate`, one round of the attack, with `keras.ops` alone; it is
    compiled once for each model and shape of the input, so a loop over steps must be a
    `keras.ops.fori_loop` or `while_loop`. `num_rounds` says how many rounds there are (restarts,
    target classes). Between rounds `run` drops the examples on which the attack has succeeded.

    Inside of a function under construction (a custom `train_step`, a `tf.function`) a call
    becomes part of that function, and the values of its input cannot be checked.

    Args:
        targeted: bool. `False`: `y` holds the true labels, and the attack leads away from them.
            `True`: `y` holds the labels that the attack leads to. Defaults to `False`.
        bounds: pair of floats. Valid range of `x`. Defaults to `(0.0, 1.0)`.
        from_logits: bool. Whether the model returns logits, rather than probabilities.
            Defaults to `True`. With `False`, a softmax that ends a Keras model is left out, since
            it loses the gradient where it saturates; of other models the logarithm is taken.
        objective: callable `(model, x, y) -> values`, what to differentiate instead of the
            model, for a defence whose own gradient misleads: either one value for each example,
            shape `(batch_size,)`, which the attack climbs, or class scores, shape
            `(batch_size, num_classes)`, which take the place of the model's logits. Success is
            always judged on the model itself. To be saved, it must be registered with
            `keras.saving.register_keras_serializable`. Defaults to `None`: the model.
        num_samples: int. How many draws of a model that is random in inference mode each
            gradient is averaged over (expectation over transformation). Success is judged on the
            average logits of as many other draws. Defaults to `1`.

    Call arguments:
        model: Keras model, or a callable `x -> logits`, shape `(batch_size, num_classes)`.
        x: float array or tensor, shape `(batch_size, ...)`, inside `bounds`.
        y: integer labels, shape `(batch_size,)` or `(batch_size, 1)`, or one-hot labels, shape
            `(batch_size, num_classes)`.
        seed: int. The same seed gives the same `x_adv`. Defaults to `None`: a seed from Python's
            `random`, which `keras.utils.set_random_seed` makes reproducible.

    Returns:
        Tensor, same shape and dtype as `x`, inside `bounds`. It is computed in float32 where `x`
        has a lower precision, and rounded at the end.

    Raises:
        ValueError: before any work, if an argument is not as described above; if the model's
            outputs are NaN, do not match the labels, or are not what `from_logits` says; after
            it, if NaN or infinite values came up.
    """

    # Whether an example is done with as soon as the model is fooled on it.
    stops_when_fooled = True

    def __init__(
        self,
        *,
        targeted: bool = False,
        bounds: tuple[float, float] = (0.0, 1.0),
        from_logits: bool = True,
        objective: Callable[[Any, Any, Any], Any] | None = None,
        num_samples: int = 1,
    ) -> None:
        self.targeted = bool(targeted)
        self.bounds = validation.check_bounds(bounds)
        self.from_logits = bool(from_logits)
        if objective is not None and not callable(objective):
            raise ValueError(
                "Argument `objective` must be a callable `(model, x, y) -> values`. "
                f"Received: objective={objective!r}"
            )
        self.objective = objective
        self.num_samples = validation.check_count("num_samples", num_samples)

    def num_rounds(self, num_classes: int) -> int:
        """How many times `generate` is called: once for each restart or target class, say."""
        return 1

    def initial_state(self, x: Any) -> tuple[Any, ...]:
        """What rounds hand on besides images: tensors with one entry for each example."""
        return ()

    def is_active(self, index: Any, margin: Any, state: tuple[Any, ...]) -> Any:
        """Which examples round `index` is for: by default all, or those that still stand.

        `run` drops the others; `perturb` does not, so `generate` must leave them as they are.
        """
        return margin <= 0 if self.stops_when_fooled else margin < float("inf")

    def generate(
        self, problem: Problem, x: Any, start: Any, index: Any, seed: Any, *state: Any
    ) -> tuple[Any, ...]:
        """One round of the attack; implemented by subclasses.

        Args:
            problem: what can be asked of the model.
            x: tensor of float32 or float64, the original images.
            start: tensor, the best images of the rounds before; `x` in the first.
            index: int or int tensor, number of the round.
            seed: tensor, another one in each round, for the random functions of
                `keras_robust.backend`.
            *state: the tensors of `initial_state`, as the round before has returned them.

        Returns:
            The images; how many gradients were computed for each; how many times the model was
            run on each without one; and the state.
        """
        raise NotImplementedError(f"{type(self).__name__} must implement `generate`.")

    def improves(self, x: Any, new: Any, new_margin: Any, best: Any, best_margin: Any) -> Any:
        """Where a round's images are better than the best before: the larger margin.

        Margins are positive where the model is fooled. All are tensors, or all are arrays.
        """
        return new_margin > best_margin

    def __call__(self, model: Any, x: Any, y: Any, seed: Any = None) -> Any:
        if not backend.is_tracing(x):
            return ops.convert_to_tensor(self.run(model, x, y, seed).x_adv)
        if seed is None:
            raise ValueError(
                "Argument `seed` must be given where an attack is part of a compiled function: "
                "without it, every call would draw the same numbers. Received: seed=None"
            )
        x_adv = self.perturb(model, x, y, seed)
        margin = Problem(self, model, sparse_labels(y), as_seed(seed)).margin(working(x_adv))
        return per_example_where(margin > 0, x_adv, x)

    def run(self, model: Any, x: Any, y: Any, seed: Any = None) -> AttackResult:
        """Attacks arrays, and tells what came of it.

        Arguments and errors are those of a call.

        Returns:
            `kr.attacks.AttackResult`.
        """
        x, y = ops.convert_to_numpy(x), ops.convert_to_numpy(y)
        num_rounds = self.num_rounds(self.check(model, x, y))
        seed = as_seed(random.randint(1, 2**31 - 1) if seed is None else seed)
        return Rounds(self, model, x, y, seed).run(num_rounds)

    def perturb(self, model: Any, x: Any, y: Any, seed: Any) -> Any:
        """The attack in tensor operations, as it is used in training.

        Nothing is checked, and an example on which the attack fails keeps the strongest
        perturbation that was found: that is what an adversarial loss is computed on.

        Args:
            model: Keras model, or a callable `x -> logits`.
            x: tensor, shape `(batch_size, ...)`.
            y: labels, integer or one-hot.
            seed: int, or a seed of `keras_robust.backend`.

        Returns:
            Tensor, same shape and dtype as `x`.
        """
        x = ops.convert_to_tensor(x)
        seed, labels, work = as_seed(seed), sparse_labels(y), working(x)
        best, _, _, *state = self.round(model, x, labels, work, self.initial_state(work), 0, seed)
        num_rounds = self.num_rounds(self.judge(model, labels, seed, 0).num_classes(work))
        if num_rounds > 1:

            def unfinished(index: Any, best: Any, best_margin: Any, *state: Any) -> Any:
                return ops.any(best_margin <= 0) if self.stops_when_fooled else index < num_rounds

            def try_again(index: Any, best: Any, best_margin: Any, *state: Any) -> Any:
                new, _, _, *handed_on = self.round(model, x, labels, best, state, index, seed)
                new_margin = self.judge(model, labels, seed, index).margin(new)
                better = self.improves(work, new, new_margin, best, best_margin)
                if self.stops_when_fooled:
                    better = ops.logical_and(better, best_margin <= 0)
                best_margin = ops.where(better, new_margin, best_margin)
                return index + 1, per_example_where(better, new, best), best_margin, *handed_on

            margin = self.judge(model, labels, seed, 0).margin(best)
            best = ops.while_loop(
                unfinished, try_again, (1, best, margin, *state), maximum_iterations=num_rounds - 1
            )[1]
        return ops.cast(ops.clip(best, *self.bounds), x.dtype)

    def check(self, model: Any, x: np.ndarray, y: np.ndarray) -> int:
        """Raises a `ValueError` for input that the attack cannot work on.

        Returns:
            The number of classes.
        """
        return inference.check(model, x, y, self.bounds, self.from_logits)

    def get_config(self) -> dict[str, Any]:
        """The arguments of the constructor."""
        objective = self.objective
        return {
            "targeted": self.targeted,
            "bounds": list(self.bounds),
            "from_logits": self.from_logits,
            "objective": objective and keras.saving.serialize_keras_object(objective),
            "num_samples": self.num_samples,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "Attack":
        if isinstance(config.get("objective"), dict):
            objective = keras.saving.deserialize_keras_object(config["objective"])
            config = {**config, "objective": objective}
        return cls(**config)

    def __repr__(self) -> str:
        names = inspect.signature(type(self)).parameters
        arguments = ", ".join(f"{name}={getattr(self, name)!r}" for name in names)
        return f"{type(self).__name__}({arguments})"

    def round(
        self, model: Any, x: Any, y: Any, start: Any, state: Any, index: Any, seed: Any
    ) -> tuple[Any, ...]:
        """Round `index` in tensor operations: what `generate` returns."""
        problem = _problem(self, model, y, seed, index, _ATTACKED, x.dtype)
        seed = backend.fold_in(seed, index)
        return self.generate(problem, working(x), start, index, seed, *state)

    def judge(self, model: Any, y: Any, seed: Any, index: Any, dtype: str | None = None) -> Problem:
        """What judges the images of round `index`: other draws of a random model than attacked."""
        return _problem(self, model, y, seed, index, _JUDGED, dtype)

    def takes_any_batch_size(self, model: Any) -> bool:
        """Whether one compiled function serves all batch sizes: a user's own may not."""
        return self.objective is None and inference.takes_any_batch_size(model)


def _problem(
    attack: Attack, model: Any, y: Any, seed: Any, index: Any, purpose: int, dtype: str | None
) -> Problem:
    seed = backend.fold_in(backend.fold_in(seed, index), purpose)
    return Problem(attack, model, y, seed, dtype)
