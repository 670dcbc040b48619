"""Runs an attack on arrays, round by round, on the examples that are not finished.

Each round is compiled once. The function that judges the images is compiled separately and shared
by all attacks, so that no attack compiles this forward pass again.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from keras import ops

from keras_robust import backend
from keras_robust.attacks.inputs import as_working_dtype
from keras_robust.attacks.journal import Journal
from keras_robust.attacks.problem import Problem
from keras_robust.attacks.result import NORMS, AttackResult, perturbation_norms
from keras_robust.model.batches import padded
from keras_robust.model.classifier import Classifier
from keras_robust.ops.labels import sparse_labels
from keras_robust.types import Images, Labels, Seed, Tensor


class Rounds:
    """Runs the rounds of an attack, and keeps the best image and the cost of each example.

    If predictions depend on the batch, every round gets the whole batch, and success is judged on
    the batch that is returned.

    Args:
        attack: `kr.attacks.Attack`.
        classifier: `Classifier` of the model.
        x: array, shape `(batch_size, ...)`.
        y: array of labels, integer or one-hot.
        seed: seed of `keras_robust.backend`.
        needs_gradient: bool. Whether a missing gradient is an error.
        journal: `Journal` that saves each round. The attack resumes after the last saved round.
        mask: bool array of the shape of `x`, true where values may change; `None` if all may.
    """

    def __init__(
        self,
        attack: Any,
        classifier: Classifier,
        x: np.ndarray,
        y: np.ndarray,
        seed: Seed,
        needs_gradient: bool,
        journal: Journal,
        mask: np.ndarray | None,
    ) -> None:
        self.attack, self.classifier, self.x, self.y, self.seed = attack, classifier, x, y, seed
        self.needs_gradient, self.key, self.journal = needs_gradient, attack.key, journal
        self.mask = mask
        self.state = tuple(
            np.array(value) for value in attack.first_state(as_working_dtype(x), mask)
        )
        self.best, self.margins = x.copy(), np.full(len(x), -np.inf)
        self.counts = np.zeros((2, len(x)), int)
        self.is_joint = classifier.depends_on_batch
        self.judge = self._compiled_judge()

    def run(self, num_rounds: int) -> AttackResult:
        without_gradient: tuple[str, ...] = ()
        try:
            self._run_all(num_rounds)
        except backend.NoGradientError:
            if self.needs_gradient:
                raise
            without_gradient = (type(self.attack).__name__,)
        self._check_ball()
        self._restore_originals()
        norms = perturbation_norms(self.x, self.best)
        return AttackResult(
            self.best,
            self.margins > 0,
            norms,
            num_gradients=self.counts[0],
            num_evaluations=self.counts[1],
            without_gradient=without_gradient,
        )

    def _run_all(self, num_rounds: int) -> None:
        run_round = self._compiled_round()
        for index in range(self._resume(), num_rounds):
            active = np.flatnonzero(self.attack.is_active(index, self.margins, self.state))
            if len(active):
                self.journal.begin_round(index, num_rounds, len(active))
                self._run_round(run_round, index, active)
                if index + 1 < num_rounds:  # The caller saves the final result.
                    self._save(index + 1)

    def _save(self, num_done: int) -> None:
        state = {f"state_{number}": value for number, value in enumerate(self.state)}
        self.journal.write(
            num_done=np.array(num_done),
            best=self.best,
            margins=self.margins,
            counts=self.counts,
            **state,
        )

    def _resume(self) -> int:
        """Loads the saved rounds, and returns how many there are."""
        saved = self.journal.read()
        if not saved:
            return 0
        # NumPy files store bfloat16 as raw bytes.
        self.best = saved["best"].view(self.best.dtype)
        self.margins, self.counts = saved["margins"], saved["counts"]
        self.state = tuple(
            saved[f"state_{number}"].view(value.dtype) for number, value in enumerate(self.state)
        )
        return int(saved["num_done"])

    def _run_round(self, run_round: Callable[..., Any], index: int, active: np.ndarray) -> None:
        batch, places = self._batch(active)
        masks = () if self.mask is None else (self.mask,)
        images = (values[batch] for values in (self.x, self.y, self.best, *masks, *self.state))
        data = self.attack.data_arrays()
        x_adv, *counts, state = run_round(*images, np.int32(index), self.seed, *data)
        margins = self.judge(x_adv, self.y[batch], self.attack.judging_seed(self.seed, index))
        num_computed = np.array([ops.convert_to_numpy(count) for count in counts], int)
        new, new_margins, *new_state = (
            ops.convert_to_numpy(values)[places] for values in (x_adv, margins, *state)
        )
        self._check_finite(new, new_margins)
        better = self.attack.improves(
            self.x[active], new, new_margins, self.best[active], self.margins[active]
        )
        self.best[active[better]] = new[better]
        self.margins[active[better]] = new_margins[better]
        self.counts[:, active] += num_computed[:, None]
        self.counts[1, active] += self.attack.num_samples
        for values, new_values in zip(self.state, new_state, strict=True):
            values[active] = new_values

    def _restore_originals(self) -> None:
        """Restores the original images of failed examples, and judges what is returned.

        The joint images of a batch are judged again until no further example fails.
        """
        failed = np.flatnonzero(self.margins <= 0)
        unjudged = np.arange(len(self.x)) if self.is_joint else failed
        while len(unjudged):
            self.best[failed] = self.x[failed]
            batch, places = self._batch(unjudged)
            judged = ops.convert_to_numpy(self.judge(self.best[batch], self.y[batch], self.seed))
            self._check_finite(self.x[:1], judged)
            self.margins[unjudged] = judged[places]
            self.counts[1, unjudged] += self.attack.num_samples
            # In a joint batch, a restored original can make the attack fail on another example.
            changed = (self.best != self.x).reshape(len(self.x), -1).any(axis=1)
            failed = np.flatnonzero(changed & (self.margins <= 0))
            unjudged = unjudged if self.is_joint and len(failed) else failed[:0]

    def _batch(self, indices: np.ndarray) -> tuple[np.ndarray, Any]:
        """Returns the indices of the model's input batch, and the places of `indices` in it."""
        if self.is_joint:
            return np.arange(len(self.x)), indices
        batch = filled_up(self.attack, self.classifier, indices, len(self.x))
        return batch, slice(len(indices))

    def _compiled_round(self) -> Callable[..., Any]:
        attack, has_mask = self.attack, self.mask is not None
        takes_any = attack.takes_any_batch_size(self.classifier)
        return self.classifier.compiled(
            ("round", self.key, has_mask),
            lambda *args: _traced_round(attack, has_mask, *args),
            num_batched=3 + has_mask + len(self.state) if takes_any else 0,
        )

    def _compiled_judge(self) -> Callable[..., Any]:
        """Returns the compiled `Problem.margin`, a function of images, labels and a seed."""
        attack = self.attack
        return self.classifier.compiled(
            ("margin", attack.targeted, attack.from_logits, attack.num_samples),
            lambda *args: _traced_margin(attack, *args),
            num_batched=2 if self.classifier.takes_any_batch_size else 0,
        )

    def _check_finite(self, x: np.ndarray, margins: np.ndarray) -> None:
        if not np.isfinite(x.astype("float32")).all() or np.isnan(margins).any():
            raise ValueError(
                f"{self.attack!r} encountered NaN or infinite values. The model's outputs or its "
                "gradient are not finite on some of the images that the attack tried."
            )

    def _check_ball(self) -> None:
        """Raises a `ValueError` if an image is outside the attack's ball."""
        epsilon = self.attack.data.get("epsilon")
        norm = getattr(self.attack, "norm", "linf")
        if epsilon is None or norm not in NORMS:
            return
        info = np.finfo("float32" if self.x.dtype.itemsize > 2 else "float16")
        change = self.best.astype("float32") - self.x.astype("float32")
        # Tolerance: each value is rounded to the precision of the images.
        rounding = np.full(self.x.shape[1:], 4 * float(info.eps) * float(np.abs(self.x).max()))
        if np.ndim(epsilon):
            # Changes are measured in units of each value's radius. Fixed values have radius 0.
            is_fixed = np.broadcast_to(epsilon == 0, self.x.shape[1:])
            size = np.where(is_fixed, 1.0, epsilon)
            change = np.where(is_fixed & (np.abs(change) <= rounding), 0.0, change) / size
            rounding, epsilon = rounding / size, 1.0
        largest = float(NORMS[norm](change.reshape(len(change), -1).astype("float64")).max())
        allowed = float(NORMS[norm](rounding.reshape(1, -1) + 4 * float(info.eps) * epsilon)[0])
        if largest > epsilon * (1 + 1e-3) + allowed:
            raise ValueError(
                f"{self.attack!r} has left its ball. Images must be within `epsilon` of the "
                f"originals in the {norm} norm. Received: epsilon={epsilon:g}, a perturbation of "
                f"{largest:g}"
            )


def filled_up(
    attack: Any, classifier: Classifier, indices: np.ndarray, batch_size: int
) -> np.ndarray:
    """Pads `indices` with its last entry to one of a few batch sizes.

    This limits the number of compilations if each batch size is compiled separately. Otherwise,
    returns `indices` as they are.
    """
    if attack.takes_any_batch_size(classifier):
        return indices
    while batch_size >= 4 * len(indices):
        batch_size //= 4
    return padded(indices, batch_size)


def _traced_round(
    attack: Any,
    has_mask: bool,
    classifier: Classifier,
    x: Images,
    y: Labels,
    start: Tensor,
    *rest: Any,
) -> tuple[Any, ...]:
    """Computes a round's images as they are returned, their cost and the new state."""
    mask, rest = (rest[0], rest[1:]) if has_mask else (None, rest)
    count = len(rest) - attack.num_data
    *state, index, seed = rest[:count]
    attack = attack.with_data(rest[count:], as_working_dtype(x).dtype)
    y = sparse_labels(y)
    found = attack.round(classifier, x, y, as_working_dtype(start), state, index, seed, mask)
    x_adv = attack.returned(found.x_adv, x, mask)
    counts = (ops.cast(count, "int32") for count in (found.num_gradients, found.num_evaluations))
    return x_adv, *counts, tuple(found.state)


def _traced_margin(attack: Any, classifier: Classifier, x: Images, y: Labels, seed: Seed) -> Tensor:
    return Problem(attack, classifier, sparse_labels(y), seed).margin(as_working_dtype(x))
