"""The base class of all attacks."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_robust import backend, scheduled, validation
from keras_robust.attacks.inputs import as_mask, as_seed, as_working_dtype, drawn_seed
from keras_robust.attacks.journal import Journal
from keras_robust.attacks.meter import Cost, Meter
from keras_robust.attacks.plausible import warn_of_units
from keras_robust.attacks.problem import Problem
from keras_robust.attacks.result import AttackResult, RoundResult
from keras_robust.attacks.rounds import Rounds
from keras_robust.attacks.space import Space, bounds_for
from keras_robust.attacks.value import Value
from keras_robust.model.arrays import as_array, check_broadcasts, check_one_class, single
from keras_robust.model.classifier import Classifier
from keras_robust.model.images import Images
from keras_robust.model.smoothed import SmoothedClassifier
from keras_robust.ops import per_example_where, sparse_labels

# What a round's seed is folded with for the draws of a random model: in the attack, to judge it.
_ATTACKED, _JUDGED = 1_000_001, 1_000_002
# By how many times what rounding can undo an attack is to fool the model, so that its judge and
# the user agree: they run the model in other functions, and in batches of other sizes.
_CAUTION = 3.0


class Attack(Value):
    """Base class: holds an attack's configuration, checks the input, runs the attack compiled.

    An attack is called as `attack(model, x, y, seed=None, mask=None)` and returns `x_adv`; an
    example on which it fails keeps its original image. `attack.run(model, x, y, seed=None)` returns
    a `kr.attacks.AttackResult` that tells more, and `attack.perturb(model, x, y, seed)` is for
    training. With a `mask` only the values where it is 1 are changed: the others stay bit for bit
    as they are, and are no part of a gradient's length. The model runs in inference mode
    (`training=False`): batch-norm statistics are used and stay as they are.

    An attack is a value: its attributes cannot be set once it is made.
    `attack.replace(epsilon=0.1)` returns another one.

    A subclass implements `generate`, one round of the attack, with `keras.ops` alone; it is
    compiled once for each model and shape of the input, so a loop over steps must be a
    `problem.fori_loop` or `problem.while_loop`. `num_rounds` says how many rounds there are
    (restarts, target classes). Between rounds `run` drops the examples on which the attack has
    succeeded.

    What is compiled is kept for the configuration, that is for the values of all attributes: arrays
    count by their content, functions by their code and what they are bound to. The attributes
    named in `data_names` do not count: they are passed to what is compiled, and so are tensors in
    `generate`. An object as `objective` counts by its attributes too; state that it keeps elsewhere
    (in a file, in C) is not noticed when it changes.

    Inside of a function under construction (a custom `train_step`, a `tf.function`) a call
    becomes part of that function, and the values of its input cannot be checked.

    Args:
        targeted: bool. `False`: `y` holds the true labels, and the attack leads away from them.
            `True`: `y` holds the labels that the attack leads to. Defaults to `False`.
        bounds: pair of floats, or of arrays that broadcast to one example: the valid range of `x`.
            `None`, for one of them or for both, where there is none. Defaults to `(0.0, 1.0)`.
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
        model: Keras model, or a callable `x -> logits`, shape `(batch_size, num_classes)`; or
            `(batch_size, 1)`, a logit z of two classes, which counts as `(0, z)`.
        x: float array or tensor, shape `(batch_size, ...)`, inside `bounds`.
        y: integer labels, shape `(batch_size,)` or `(batch_size, 1)`, or one-hot labels, shape
            `(batch_size, num_classes)`.
        seed: int. The same seed gives the same `x_adv`. Defaults to `None`: a seed from Python's
            `random`, which `keras.utils.set_random_seed` makes reproducible.
        mask: array or tensor of 0 and 1 that broadcasts to `x`, 1 where it may be changed.
            Defaults to `None`: everywhere.

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
    # Whether `generate` differentiates the model.
    uses_gradient = True

    def __init__(
        self,
        *,
        targeted: bool = False,
        bounds: Any = (0.0, 1.0),
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

    @property
    def width(self) -> Any:
        """How far apart the bounds are, for steps that are a share of it.

        A float; where the bounds differ from value to value, or there are none, a tensor of shape
        `(batch_size,)` in `generate`: the widest range, or that of the example's own values.
        """
        return vars(self).get("_width", self.bounds[1] - self.bounds[0])

    def num_rounds(self, num_classes: int) -> int:
        """How many times `generate` is called: once for each restart or target class, say."""
        return 1

    def round_costs(self, num_classes: int) -> list[Cost]:
        """The passes that each round takes at most, to estimate the remaining time."""
        num_steps = getattr(self, "num_steps", 1)
        passes = num_steps if isinstance(num_steps, int) else 1
        cost = Cost(self.uses_gradient, max(passes, 1) * self.num_samples)
        return [cost] * self.num_rounds(num_classes)

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
    ) -> Any:
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
            The images, or `kr.attacks.RoundResult`: with how many gradients were computed for each
            example, how many times the model was run on each without one, and the state.
        """
        raise NotImplementedError(f"{type(self).__name__} must implement `generate`.")

    def improves(self, x: Any, new: Any, new_margin: Any, best: Any, best_margin: Any) -> Any:
        """Where a round's images are better than the best before: the larger margin.

        Margins are positive where the model is fooled. All are tensors, or all are arrays.
        """
        return new_margin > best_margin

    def __call__(self, model: Any, x: Any, y: Any, seed: Any = None, mask: Any = None) -> Any:
        x = single(x)
        if not backend.is_tracing(x):
            return ops.convert_to_tensor(self.run(model, x, y, seed, mask=mask).x_adv)
        if seed is None:
            raise ValueError(
                "Argument `seed` must be given where an attack is part of a compiled function: "
                "without it, every call would draw the same numbers. Received: seed=None"
            )
        classifier = Classifier.of(model)
        x_adv = self.perturb(classifier, x, y, seed, mask)
        judge = Problem(self, classifier, sparse_labels(y), as_seed(seed))
        return per_example_where(judge.margin(as_working_dtype(x_adv)) > 0, x_adv, x)

    def run(
        self,
        model: Any,
        x: Any,
        y: Any,
        seed: Any = None,
        verbose: int = 0,
        mask: Any = None,
    ) -> AttackResult:
        """Attacks arrays, and tells what came of it.

        Arguments and errors are those of a call. `verbose=1` shows which attack of an ensemble and
        which round runs, and about how long it will still take; `verbose=2` says so once a minute.

        Returns:
            `kr.attacks.AttackResult`.
        """
        classifier = Classifier.of(model)
        x, y = as_array(x), as_array(y, "y")
        self.check(classifier, x, y)
        mask = as_mask(mask, x.shape)
        meter = Meter(self.round_costs(classifier.num_classes), verbose=verbose)
        meter.begin_batch(len(x))
        result = self.run_checked(classifier, x, y, seed, journal=Journal(meter), mask=mask)
        meter.close(int((~result.success).sum()), len(x))
        return result

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
        """`run` on arrays that have been checked.

        Args:
            needs_gradient: bool. Whether it is an error if there is no gradient: otherwise the
                attack fails on its examples, and the result says so.
            journal: what was found before, after whose last round the attack goes on, and where
                it notes each round. Defaults to `None`: it begins anew, and nothing is noted.
            mask: bool array of the shape of `x`, or `None`.
        """
        num_rounds = self.num_rounds(classifier.num_classes)
        seed = drawn_seed() if seed is None else as_seed(seed)
        rounds = Rounds(self, classifier, x, y, seed, needs_gradient, journal or Journal(), mask)
        return rounds.run(num_rounds)

    def perturb(self, model: Any, x: Any, y: Any, seed: Any, mask: Any = None) -> Any:
        """The attack in tensor operations, as it is used in training.

        No values are checked but those of labels that are arrays, and an example on which the
        attack fails keeps the strongest perturbation that was found: that is what an adversarial
        loss is computed on.

        Args:
            model: Keras model, or a callable `x -> logits`.
            x: floating tensor, shape `(batch_size, ...)`.
            y: labels, integer or one-hot.
            seed: int, or a seed of `keras_robust.backend`.
            mask: array or tensor that broadcasts to `x`, 1 where it may be changed. Defaults to
                `None`: everywhere.

        Returns:
            Tensor, same shape and dtype as `x`.
        """
        classifier, x, y = Classifier.of(model), ops.convert_to_tensor(single(x)), single(y, "y")
        if not backend.is_tracing(y):
            check_one_class(as_array(y))
        attack, labels = self.at(None, as_working_dtype(x).dtype), sparse_labels(y)
        if mask is not None:
            mask = ops.broadcast_to(ops.cast(mask, "bool"), ops.shape(x))
        return attack.perturb_images(classifier, x, labels, as_seed(seed), mask)

    def perturb_images(
        self, classifier: Classifier, x: Any, labels: Any, seed: Any, mask: Any = None
    ) -> Any:
        """`perturb` for integer labels, with radii that are numbers or tensors."""
        work = as_working_dtype(x)
        state = self.first_state(work, mask)
        first = self.round(classifier, x, labels, work, state, 0, seed, mask)
        best, state = first.x_adv, first.state
        num_rounds = self.num_rounds(self.judge(classifier, labels, seed, 0).num_classes(work))
        if num_rounds > 1:

            def unfinished(index: Any, best: Any, best_margin: Any, *state: Any) -> Any:
                return ops.any(best_margin <= 0) if self.stops_when_fooled else index < num_rounds

            def try_again(index: Any, best: Any, best_margin: Any, *state: Any) -> Any:
                found = self.round(classifier, x, labels, best, state, index, seed, mask)
                new = found.x_adv
                new_margin = self.judge(classifier, labels, seed, index).margin(new)
                better = self.improves(work, new, new_margin, best, best_margin)
                if self.stops_when_fooled:
                    better = ops.logical_and(better, best_margin <= 0)
                best_margin = ops.where(better, new_margin, best_margin)
                return index + 1, per_example_where(better, new, best), best_margin, *found.state

            margin = self.judge(classifier, labels, seed, 0).margin(best)
            best = classifier.while_loop(
                unfinished, try_again, (1, best, margin, *state), maximum_iterations=num_rounds - 1
            )[1]
        return self.returned(best, x, mask)

    def check(self, model: Any, x: np.ndarray | Images, y: np.ndarray) -> int:
        """Raises a `ValueError` for input that the attack cannot work on.

        Returns:
            The number of classes.
        """
        classifier = Classifier.of(model)
        num_classes = classifier.check(x, y, (self.bounds, self.from_logits))
        self.check_classifier(classifier, x)
        return num_classes

    def check_classifier(self, classifier: Classifier, x: np.ndarray | Images) -> None:
        """Raises a `ValueError` for a checked model and images that this attack cannot work on.

        It warns of a radius that is implausible for images of this size.
        """
        for name in ("epsilon", "step_size", "stddev"):
            value = getattr(self, name, None)
            if isinstance(value, np.ndarray):
                check_broadcasts(name, value.shape, x.shape[1:])
        warn_of_units(self, num_values=x[0].size)
        if classifier.is_black_box and self.uses_gradient and self.objective is None:
            other = "HopSkipJump" if classifier.returns_classes else "Square"
            raise ValueError(
                f"{type(self).__name__} needs the model's gradient, which a "
                f"`keras_robust.BlackBox` has not: attack it by `keras_robust.attacks.{other}`, or "
                f"with a surrogate as `objective`. Received: model={classifier.model!r}"
            )
        is_smoothed = isinstance(classifier.model, SmoothedClassifier)
        if is_smoothed and self.uses_gradient and self.objective is None:
            raise ValueError(
                f"{type(self).__name__} needs a gradient, which the votes of a "
                "`keras_robust.evaluation.SmoothedClassifier` have not: pass "
                "`objective=keras_robust.evaluation.noisy_logits`, and `num_samples` of 10 or "
                f"more. Received: objective=None, model={classifier.model!r}"
            )

    def get_config(self) -> dict[str, Any]:
        """The arguments of the constructor."""
        objective = self.objective
        return {
            "targeted": self.targeted,
            "bounds": [scheduled.saved(bound) for bound in self.bounds],
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

    def round(
        self,
        classifier: Classifier,
        x: Any,
        y: Any,
        start: Any,
        state: Any,
        index: Any,
        seed: Any,
        mask: Any = None,
    ) -> RoundResult:
        """Round `index` in tensor operations."""
        attacked_seed = backend.fold_in(backend.fold_in(seed, index), _ATTACKED)
        space = Space(self, as_working_dtype(x), mask)
        attack = space.attack
        problem = Problem(attack, classifier, y, attacked_seed, x.dtype, _CAUTION, space)
        seed = backend.fold_in(seed, index)
        images = space.inside(space.x), space.inside(start)
        found = attack.generate(problem, *images, index, seed, *state)
        if isinstance(found, tuple) and len(found) >= 3 and not isinstance(found, RoundResult):
            # As attacks returned it before.
            found = RoundResult(found[0], found[1], found[2], found[3:])
        if isinstance(found, RoundResult):
            return found._replace(x_adv=space.outside(found.x_adv))
        if not hasattr(found, "shape"):
            raise ValueError(
                f"`{type(self).__name__}.generate` must return the images, or a "
                "`keras_robust.attacks.RoundResult`. "
                f"Received: a value of type {type(found).__name__}"
            )
        return RoundResult(space.outside(found))

    def first_state(self, x: Any, mask: Any) -> tuple[Any, ...]:
        """`initial_state`, where an image may be moved as `mask` says."""
        space = Space(self, x, mask)
        return space.attack.initial_state(space.inside(x))

    def returned(self, x_adv: Any, x: Any, mask: Any) -> Any:
        """Images inside of the bounds, in the dtype of `x`; outside of the mask, `x` itself."""
        x_adv = ops.cast(ops.clip(x_adv, *bounds_for(self.bounds, x_adv)), x.dtype)
        return x_adv if mask is None else ops.where(mask, x_adv, x)

    def judge(self, classifier: Classifier, y: Any, seed: Any, index: Any) -> Problem:
        """The problem that decides whether the images of round `index` fool the model."""
        return Problem(self, classifier, y, self.judging_seed(seed, index))

    def judging_seed(self, seed: Any, index: Any) -> Any:
        """The seed that judges round `index`: other draws of a random model than attacked."""
        return backend.fold_in(backend.fold_in(seed, index), _JUDGED)

    def takes_any_batch_size(self, classifier: Classifier) -> bool:
        """Whether one compiled function serves all batch sizes: a user's own may not."""
        return self.objective is None and classifier.takes_any_batch_size
