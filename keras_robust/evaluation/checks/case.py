"""What the checks look at: a model, some images, and an attack."""

import dataclasses
import hashlib
from collections.abc import Callable, Hashable
from typing import Any

import numpy as np
from keras import ops

from keras_robust import backend
from keras_robust.attacks import PGD, Attack
from keras_robust.attacks.inputs import as_working_dtype
from keras_robust.attacks.journal import Arrays, Journal
from keras_robust.attacks.pgd import LOSSES
from keras_robust.attacks.problem import Problem
from keras_robust.evaluation.fingerprint import attack_fingerprint
from keras_robust.evaluation.progress import Progress
from keras_robust.metrics.perturbed import batch_seed
from keras_robust.metrics.radii import radii
from keras_robust.model.arrays import padded_batches
from keras_robust.model.classifier import Classifier
from keras_robust.model.keys import value_key
from keras_robust.ops import rounding, rounding_of_probabilities

# PGD's default step of 2.5 epsilon / NUM_STEPS then crosses the ball.
NUM_STEPS = 20


@dataclasses.dataclass
class Case:
    """Images that the model classifies correctly, and the attack that is to be judged.

    Where predictions depend on the batch, the images are one batch that is always run as a whole,
    and those in it that are classified correctly are the examples: what is found is about them.

    Args:
        classifier: the model.
        x: images, shape `(num_images, ...)`.
        y: int array of labels, shape `(num_images,)`.
        attack: `kr.attacks.Attack`, untargeted.
        name: string, what the attack is called.
        epsilon: float, radius of the ball.
        norm: `"linf"`, `"l2"` or `"l1"`.
        batch_size: int.
        seed: int.
        chance: float, the accuracy of guessing. Defaults to `None`: one divided by the number of
            classes.
        transfer_from: another model. Defaults to `None`.
        counted: int array, shape `(num_examples,)`, which of the images are the examples. Defaults
            to `None`: all.
        standing_judged: bool array, shape `(num_examples,)`, which of the examples the attack
            does not fool, where that is known already. Defaults to `None`.
        progress: what keeps the results of attacks, each under its fingerprint. Defaults to one
            that keeps nothing.
        counts: pair of ints: how many images the attack was tried on and how many it has fooled,
            where that is known for more images than these. Defaults to `None`.
        answers: pair of int arrays, the labels of all images that were looked at, misclassified
            ones too, and the classes that the model predicts for them. Defaults to `None`.
        mask: bool array of the shape of `x`, what attacks may change. Defaults to `None`:
            everything.
    """

    classifier: Classifier
    x: np.ndarray
    y: np.ndarray
    attack: Attack
    name: str
    epsilon: float
    norm: str
    batch_size: int
    seed: int
    chance: float | None = None
    transfer_from: Classifier | None = None
    counted: np.ndarray | None = None
    standing_judged: np.ndarray | None = None
    counts: tuple[int, int] | None = None
    progress: Progress = dataclasses.field(default_factory=Progress)
    answers: tuple[np.ndarray, np.ndarray] | None = None
    mask: np.ndarray | None = None

    def __post_init__(self) -> None:
        self._found: dict[Hashable, Any] = {}
        self.is_joint = self.classifier.depends_on_batch
        self.examples = np.arange(len(self.x)) if self.counted is None else self.counted

    @property
    def range(self) -> Any:
        """The width of the attack's bounds: a float, or an array of the shape of one image.

        Where there are no bounds, it is the range of the images' values.
        """
        width = self.attack.bounds[1] - self.attack.bounds[0]
        if np.isfinite(width).all():
            return width
        own = max(float(np.ptp(self.x.astype("float32"))), 1e-6)
        return np.where(np.isfinite(width), width, own) if np.ndim(width) else own

    @property
    def is_bounded(self) -> bool:
        """Whether there is room for every value, and no more than a range."""
        return self.mask is None and bool(
            np.isfinite(np.sum(self.attack.bounds[1] - self.attack.bounds[0]))
        )

    def radius(self, share: float) -> Any:
        """Radius of the ball in which every value can move by this share of the bounds' range."""
        dimensions = {"l1": self.x[0].size, "l2": self.x[0].size ** 0.5}.get(self.norm, 1)
        return share * self.range * float(dimensions)

    @property
    def ball(self) -> Any:
        """The radius of the attacks; one for each value if the judged attack has such."""
        own: Any = self.attack.data.get("epsilon")
        return self.epsilon if not np.ndim(own) else own * (self.epsilon / np.max(own))

    @property
    def setting(self) -> dict[str, Any]:
        """The arguments that every attack takes from the one that is judged."""
        names = ("bounds", "from_logits", "objective", "num_samples")
        return {name: getattr(self.attack, name) for name in names}

    @property
    def loss(self) -> str:
        """What PGD climbs: the judged attack's own loss, where that is one of PGD's."""
        loss = getattr(self.attack, "loss", None)
        return loss if loss in LOSSES else "ce"

    def pgd(self, num_steps: int = NUM_STEPS, epsilon: Any = None) -> PGD:
        """Plain PGD in the setting of the judged attack."""
        epsilon = self.ball if epsilon is None else epsilon
        return PGD(epsilon, num_steps=num_steps, norm=self.norm, loss=self.loss, **self.setting)

    def once(self, key: Hashable, compute: Callable[[], Any]) -> Any:
        """What `compute()` returns, computed for the first check that asks."""
        if key not in self._found:
            self._found[key] = compute()
        return self._found[key]

    def robust(self, attack: Attack, among: np.ndarray | None = None) -> np.ndarray:
        """Which examples withstand an attack, shape `(num_examples,)`.

        Where `among` is given, the others are not attacked, and do not stand.
        """
        if attack is self.attack and self.standing_judged is not None:
            return self.standing_judged
        key = attack.key, value_key(attack.data)
        return self.once(key, lambda: self._standing(attack, among))

    def still_correct(self, x: np.ndarray) -> np.ndarray:
        """Which examples the model is not fooled on, by these images, as attacks judge."""
        attack = self.attack

        def margin(classifier: Classifier, x: Any, y: Any, seed: Any) -> Any:
            return Problem(attack, classifier, y, seed).margin(as_working_dtype(x))

        judge = self.classifier.compiled(("still correct", attack.key), margin, num_batched=2)
        return (self.on_images(judge, x) <= 0)[self.examples]

    def batched(self, function: Callable[..., Any]) -> np.ndarray:
        """`function(x, y, seed)`, always with the same seed, on all examples, as one array."""
        return self.on_images(function)[self.examples]

    def on_images(self, function: Callable[..., Any], x: np.ndarray | None = None) -> np.ndarray:
        """The same for all images, or for others in their place."""
        x = self.x.astype("float32") if x is None else x
        self.classifier.build(x)
        seed = backend.make_seed(self.seed)
        batches = [
            ops.convert_to_numpy(function(x[batch], self.y[batch], seed))
            for batch in padded_batches(np.arange(len(x)), self.batch_size)
        ]
        return np.concatenate(batches)[: len(x)]

    def predicted(self, seed: int) -> np.ndarray:
        """The model's class scores for each example, drawn from `seed` where it is random."""
        return self.batched(lambda x, *_: self.classifier.scores(x, seed))

    def outputs(self) -> np.ndarray:
        """The model's outputs in float32, shape `(num_examples, num_classes)`."""

        def compute() -> np.ndarray:
            return self.predicted(0).astype("float32")

        return self.once("outputs", compute)

    def probabilities(self) -> np.ndarray:
        """The model's probabilities in float32, shape `(num_examples, num_classes)`."""
        p = self.outputs()
        if self.attack.from_logits:
            p = np.exp(p - p.max(axis=1, keepdims=True))
            p /= p.sum(axis=1, keepdims=True)
        return p

    def rounding(self) -> np.ndarray:
        """How far rounding may move the difference of two outputs, shape `(num_examples,)`."""
        outputs, precision = ops.convert_to_tensor(self.outputs()), self.classifier.precision
        if self.attack.from_logits:
            values = rounding(outputs, self.y[self.examples].astype("int32"), precision)
        else:
            values = rounding_of_probabilities(outputs, precision)
        return ops.convert_to_numpy(values)

    def share_of_ties(self) -> float:
        """The share of examples whose two largest class scores differ by no more than rounding."""

        def compute() -> float:
            second, first = np.sort(self.outputs(), axis=1)[:, -2:].T
            return float(np.mean(first - second <= self.rounding()))

        return self.once("share of ties", compute)

    def _standing(self, attack: Attack, among: np.ndarray | None) -> np.ndarray:
        robust = np.ones(len(self.x), bool)
        among = np.ones(len(self.examples), bool) if among is None else among
        attacked = np.arange(len(self.x)) if self.is_joint else self.examples[among]
        digest = hashlib.sha256(attack_fingerprint(attack).encode() + attacked.tobytes())
        for number, batch in enumerate(padded_batches(attacked, self.batch_size)):

            def run(journal: Journal, batch: np.ndarray = batch, number: int = number) -> Arrays:
                seed = batch_seed(self.seed, number)
                result = attack.run_checked(
                    self.classifier,
                    self.x[batch],
                    self.y[batch],
                    seed,
                    journal=journal,
                    mask=None if self.mask is None else self.mask[batch],
                )
                fooled = result.success
                if not radii(attack):  # It looks for the smallest perturbation, of any size.
                    fooled = fooled & (result.norms[self.norm] <= self.epsilon)
                return {"fooled": fooled}

            name = f"check-{digest.hexdigest()[:16]}-{number:05}"
            robust[batch] = ~self.progress.attacked(name, run)["fooled"]
        return robust[self.examples] & among
