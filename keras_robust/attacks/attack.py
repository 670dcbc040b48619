"""The base class of all attacks."""

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
from keras_robust.model.arrays import as_array, single
from keras_robust.model.checks import check_broadcasts, check_one_class
from keras_robust.model.classifier import Classifier
from keras_robust.model.images import LazyImages
from keras_robust.model.smoothed import SmoothedClassifier
from keras_robust.ops.balls import per_example_where
from keras_robust.ops.labels import sparse_labels
from keras_robust.types import Config, Images, Labels, Model, Objective, Seed, Tensor

# Folded into a round's seed, so that a random model makes different draws while it is attacked and
# while success is judged.
_ATTACKED, _JUDGED = 1_000_001, 1_000_002
# Inside `generate`, the margin must exceed this many times the rounding tolerance that the judge
# requires. The judge and the user run the model in other functions and with other batch sizes, so
# their rounding differs.
_CAUTION = 3.0


class Attack(Value):
    """Base class for adversarial attacks.

    Calling an attack, `attack(model, x, y, seed=None, mask=None)`, returns the adversarial examples
    `x_adv`. An example on which the attack fails keeps its original image.
    `attack.run(model, x, y, seed=None)` returns a `kr.attacks.AttackResult`, which also holds the
    success, norms and cost per example. `attack.perturb(model, x, y, seed)` is for training. The
    model runs in inference mode (`training=False`): batch normalization uses its moving statistics
    and does not update them.

    With a `mask`, the attack changes only the values where `mask` is 1. All other values stay bit
    for bit the same and do not count towards the norm of a gradient.

    Attacks are immutable: their attributes cannot be set after construction.
    `attack.replace(epsilon=0.1)` returns a changed copy.

    Subclasses implement `generate`, which computes one round of the attack with `keras.ops` only.
    It is compiled once for each model and input shape, so loops over steps must use
    `problem.fori_loop` or `problem.while_loop`. `num_rounds` returns the number of rounds (for
    example, one per restart or target class). Between rounds, `run` drops the examples that the
    attack has finished.

    Args:
        targeted: bool. If `False`, `y` holds the true labels, and the attack moves predictions away
            from them. If `True`, `y` holds the target labels, and the attack moves predictions
            towards them. Defaults to `False`.
        bounds: pair of floats, or of arrays that broadcast to one example. Valid range of `x`. Use
            `None` for a missing lower or upper bound, or in place of the pair if there are no
            bounds. Defaults to `(0.0, 1.0)`.
        from_logits: bool. Whether the model returns logits rather than probabilities. With `False`,
            a softmax at the end of a Keras model is skipped, since its gradient vanishes where it
            saturates. For other models, the attack uses the logarithm of the probabilities.
            Defaults to `True`.
        objective: callable `(model, x, y) -> values` that the attack differentiates instead of the
            model, for a defence whose own gradient is misleading. It returns either one value per
            example, shape `(batch_size,)`, which the attack maximises, or class scores, shape
            `(batch_size, num_classes)`, which replace the model's logits. Success is always judged
            on the model itself. To save the attack, register the callable with
            `keras.saving.register_keras_serializable`. Defaults to `None`, which differentiates the
            model.
        num_samples: int. Number of draws over which each gradient is averaged, for a model that is
            random in inference mode (expectation over transformation). Success is judged on the
            average logits of the same number of other draws. Defaults to `1`.

    Call arguments:
        model: Keras model, or a callable `x -> logits`, shape `(batch_size, num_classes)`. An
            output of shape `(batch_size, 1)` is a logit `z` of two classes and counts as `(0, z)`.
        x: float array or tensor, shape `(batch_size, ...)`, inside `bounds`.
        y: integer labels, shape `(batch_size,)` or `(batch_size, 1)`, or one-hot labels, shape
            `(batch_size, num_classes)`.
        seed: int. The same seed gives the same `x_adv`. Defaults to `None`: a seed from Python's
            `random`, which `keras.utils.set_random_seed` makes reproducible.
        mask: array or tensor of 0 and 1 that broadcasts to `x`. The attack changes only the values
            where it is 1. Defaults to `None`, which lets it change all values.

    Returns:
        Tensor, same shape and dtype as `x`, inside `bounds`. If `x` has a lower precision than
        float32, the attack computes in float32 and rounds the result at the end.

    Raises:
        ValueError: before the attack starts, if an argument is not as described above, or if the
            model's outputs are NaN, do not match the labels, or contradict `from_logits`. During
            the attack, if NaN or infinite values occur.

    Compiled functions are cached by the attack's configuration, that is, by the values of all
    attributes. Arrays are compared by content, and functions by their code and bound values. The
    attributes in `data_names` are not part of the cache key: they are inputs of the compiled
    function, and therefore tensors inside `generate`. An `objective` that is an object is also
    compared by its attributes. Changes to state that it keeps elsewhere (in a file, in C) are not
    detected.

    Inside a function that is being traced (a custom `train_step`, a `tf.function`), a call becomes
    part of that function. It then requires a `seed`, and cannot check the values of its input.
    """

    # Whether an example is finished as soon as the model is fooled on it.
    stops_when_fooled = True
    # Whether `generate` differentiates the model.
    uses_gradient = True

    def __init__(
        self,
        *,
        targeted: bool = False,
        bounds: Any = (0.0, 1.0),
        from_logits: bool = True,
        objective: Objective | None = None,
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
    def width(self) -> Tensor:
        """Width of `bounds`, the unit of step sizes that scale with it.

        A float. If the bounds are arrays or infinite, or if a mask or a radius per value is given,
        it is a tensor of shape `(batch_size,)` inside `generate`: the largest finite width, or
        without finite bounds the range of the example's own values.
        """
        return vars(self).get("_width", self.bounds[1] - self.bounds[0])

    def num_rounds(self, num_classes: int) -> int:
        """Returns the number of `generate` calls (for example, one per restart)."""
        return 1

    def round_costs(self, num_classes: int) -> list[Cost]:
        """Returns the maximal cost of each round, to estimate the remaining time."""
        num_steps = getattr(self, "num_steps", 1)
        passes = num_steps if isinstance(num_steps, int) else 1
        cost = Cost(self.uses_gradient, max(passes, 1) * self.num_samples)
        return [cost] * self.num_rounds(num_classes)

    def initial_state(self, x: Images) -> tuple[Any, ...]:
        """Returns what rounds pass on besides images: tensors with one entry per example."""
        return ()

    def is_active(self, index: Tensor, margin: Tensor, state: tuple[Tensor, ...]) -> Tensor:
        """Selects the examples that round `index` attacks.

        By default, these are the examples that no earlier round has fooled, or all examples if
        `stops_when_fooled` is `False`. `run` drops the other examples. `perturb` does not, so
        `generate` must return them unchanged.
        """
        return margin <= 0 if self.stops_when_fooled else margin < float("inf")

    def generate(
        self, problem: Problem, x: Images, start: Tensor, index: Tensor, seed: Seed, *state: Any
    ) -> Tensor:
        """Computes one round of the attack. Subclasses implement it.

        Args:
            problem: the `Problem`, which computes the model's outputs, margins and gradients.
            x: tensor of float32 or float64, the original images.
            start: tensor, the best images of the previous rounds; `x` in the first round.
            index: int or int tensor, number of the round.
            seed: tensor, a different seed in each round, for the random functions of
                `keras_robust.backend`.
            *state: the tensors of `initial_state`, as returned by the previous round.

        Returns:
            The images, or a `kr.attacks.RoundResult`. The latter also holds, for each example, the
            number of gradients and of model evaluations without a gradient, and the state.
        """
        raise NotImplementedError(f"{type(self).__name__} must implement `generate`.")

    def improves(
        self, x: Images, new: Tensor, new_margin: Tensor, best: Tensor, best_margin: Tensor
    ) -> Tensor:
        """Returns where a round's images are better than the best so far.

        By default, these are the images with the larger margin. Margins are positive where the
        model is fooled. The arguments are all tensors or all arrays.
        """
        return new_margin > best_margin

    def __call__(
        self, model: Model, x: Images, y: Labels, seed: Seed = None, mask: Tensor = None
    ) -> Tensor:
        x = single(x)
        if not backend.is_tracing(x):
            return ops.convert_to_tensor(self.run(model, x, y, seed, mask=mask).x_adv)
        if seed is None:
            raise ValueError(
                "Argument `seed` must be given when an attack is called in a compiled function: "
                "without it, every call would draw the same numbers. Received: seed=None"
            )
        classifier = Classifier.of(model)
        x_adv = self.perturb(classifier, x, y, seed, mask)
        judge = Problem(self, classifier, sparse_labels(y), as_seed(seed))
        return per_example_where(judge.margin(as_working_dtype(x_adv)) > 0, x_adv, x)

    def run(
        self,
        model: Model,
        x: Images,
        y: Labels,
        seed: Seed = None,
        verbose: int = 0,
        mask: Tensor = None,
    ) -> AttackResult:
        """Attacks arrays, and returns the images together with success, norms and costs.

        Arguments and errors are the same as in a call. `verbose=1` shows the current attack of an
        ensemble, the current round and an estimate of the remaining time. `verbose=2` prints this
        once a minute.

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
        seed: Seed = None,
        needs_gradient: bool = True,
        journal: Journal | None = None,
        mask: np.ndarray | None = None,
    ) -> AttackResult:
        """Runs the attack on arrays that have already been checked.

        Args:
            needs_gradient: bool. Whether to raise an error if the model has no gradient. If
                `False`, the attack fails on its examples, and the result names it in
                `without_gradient`.
            journal: `Journal` that records each round. If it holds rounds of an interrupted attack,
                the attack continues after the last of them. Defaults to `None`: start at the first
                round and record nothing.
            mask: bool array of the shape of `x`, or `None`.
        """
        num_rounds = self.num_rounds(classifier.num_classes)
        seed = drawn_seed() if seed is None else as_seed(seed)
        rounds = Rounds(self, classifier, x, y, seed, needs_gradient, journal or Journal(), mask)
        return rounds.run(num_rounds)

    def perturb(
        self, model: Model, x: Images, y: Labels, seed: Seed, mask: Tensor = None
    ) -> Tensor:
        """Runs the attack in tensor operations, for use in training.

        In contrast to a call, it checks no values except those of labels that are arrays. An
        example on which the attack fails keeps the strongest perturbation found, because the
        adversarial loss is computed on it.

        Args:
            model: Keras model, or a callable `x -> logits`.
            x: floating tensor, shape `(batch_size, ...)`.
            y: labels, integer or one-hot.
            seed: int, or a seed of `keras_robust.backend`.
            mask: array or tensor that broadcasts to `x`. The attack changes only the values where
                it is 1. Defaults to `None`, which lets it change all values.

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
        self, classifier: Classifier, x: Images, labels: Labels, seed: Seed, mask: Tensor = None
    ) -> Tensor:
        """Runs `perturb` for integer labels, with radii that are numbers or tensors."""
        work = as_working_dtype(x)
        state = self.first_state(work, mask)
        first = self.round(classifier, x, labels, work, state, 0, seed, mask)
        best, state = first.x_adv, first.state
        num_rounds = self.num_rounds(self.judge(classifier, labels, seed, 0).num_classes(work))
        if num_rounds > 1:

            def unfinished(index: Tensor, best: Tensor, best_margin: Tensor, *state: Any) -> Tensor:
                return ops.any(best_margin <= 0) if self.stops_when_fooled else index < num_rounds

            def try_again(index: Tensor, best: Tensor, best_margin: Tensor, *state: Any) -> Any:
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

    def check(self, model: Model, x: np.ndarray | LazyImages, y: np.ndarray) -> int:
        """Raises a `ValueError` for input that the attack does not support.

        Returns:
            The number of classes.
        """
        classifier = Classifier.of(model)
        num_classes = classifier.check(x, y, (self.bounds, self.from_logits))
        self.check_classifier(classifier, x)
        return num_classes

    def check_classifier(self, classifier: Classifier, x: np.ndarray | LazyImages) -> None:
        """Raises a `ValueError` for a checked model and images that this attack does not support.

        It also warns about a radius that is implausible for images of this size.
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
                f"`keras_robust.BlackBox` does not have. Use `keras_robust.attacks.{other}`, or "
                f"pass a surrogate as `objective`. Received: model={classifier.model!r}"
            )
        is_smoothed = isinstance(classifier.model, SmoothedClassifier)
        if is_smoothed and self.uses_gradient and self.objective is None:
            raise ValueError(
                f"{type(self).__name__} needs a gradient, which the votes of a "
                "`keras_robust.evaluation.SmoothedClassifier` do not have. Pass "
                "`objective=keras_robust.evaluation.noisy_logits`, and `num_samples` of 10 or "
                f"more. Received: objective=None, model={classifier.model!r}"
            )

    def get_config(self) -> Config:
        """Returns the arguments of the constructor, in a form that can be saved."""
        config = {name: scheduled.saved(value) for name, value in self.arguments.items()}
        if config.get("objective") is not None:
            config["objective"] = keras.saving.serialize_keras_object(self.objective)
        if "bounds" in config:
            config["bounds"] = [scheduled.saved(bound) for bound in self.bounds]
        return config

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "Attack":
        if isinstance(config.get("objective"), dict):
            objective = keras.saving.deserialize_keras_object(config["objective"])
            config = {**config, "objective": objective}
        return cls(**config)

    def round(
        self,
        classifier: Classifier,
        x: Images,
        y: Labels,
        start: Tensor,
        state: Any,
        index: Tensor,
        seed: Seed,
        mask: Tensor = None,
    ) -> RoundResult:
        """Runs round `index` in tensor operations."""
        attacked_seed = backend.fold_in(backend.fold_in(seed, index), _ATTACKED)
        space = Space(self, as_working_dtype(x), mask)
        attack = space.attack
        problem = Problem(attack, classifier, y, attacked_seed, x.dtype, _CAUTION, space)
        seed = backend.fold_in(seed, index)
        images = space.inside(space.x), space.inside(start)
        found = attack.generate(problem, *images, index, seed, *state)
        if isinstance(found, RoundResult):
            return found._replace(x_adv=space.outside(found.x_adv))
        if not hasattr(found, "shape"):
            raise ValueError(
                f"`{type(self).__name__}.generate` must return the images, or a "
                "`keras_robust.attacks.RoundResult`. "
                f"Received: a value of type {type(found).__name__}"
            )
        return RoundResult(space.outside(found))

    def first_state(self, x: Images, mask: Tensor) -> tuple[Any, ...]:
        """Returns `initial_state` in the coordinates of the attack's `Space`."""
        space = Space(self, x, mask)
        return space.attack.initial_state(space.inside(x))

    def returned(self, x_adv: Images, x: Images, mask: Tensor) -> Tensor:
        """Clips images to the bounds, casts them like `x`, and restores `x` outside `mask`."""
        x_adv = ops.cast(ops.clip(x_adv, *bounds_for(self.bounds, x_adv)), x.dtype)
        return x_adv if mask is None else ops.where(mask, x_adv, x)

    def judge(self, classifier: Classifier, y: Labels, seed: Seed, index: Tensor) -> Problem:
        """Returns the `Problem` that judges if the images of round `index` fool the model."""
        return Problem(self, classifier, y, self.judging_seed(seed, index))

    def judging_seed(self, seed: Seed, index: Tensor) -> Seed:
        """Returns the seed for judging round `index`. The attack itself uses another."""
        return backend.fold_in(backend.fold_in(seed, index), _JUDGED)

    def takes_any_batch_size(self, classifier: Classifier) -> bool:
        """Whether one compiled function serves all batch sizes.

        That is not certain for a user's `objective`.
        """
        return self.objective is None and classifier.takes_any_batch_size
