"""The model, the images and the attack that a check examines."""

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
from keras_robust.model.batches import in_batches, padded_batches
from keras_robust.model.classifier import Classifier
from keras_robust.model.keys import value_key
from keras_robust.ops.logits import rounding, rounding_of_probabilities
from keras_robust.types import Images, Labels, Seed

# PGD's default step size is then 2.5 epsilon / NUM_STEPS: together, the steps can cross the ball.
NUM_STEPS = 20


@dataclasses.dataclass
class Case:
    """Images that the model classifies correctly, and the attack to judge.

    If predictions depend on the batch, the images are one batch that is always run as a whole. Its
    correctly classified images are the examples, and all results are about the examples.

    Args:
        classifier: the model.
        x: images, shape `(num_images, ...)`.
        y: int array of labels, shape `(num_images,)`.
        attack: `kr.attacks.Attack`, untargeted.
        name: string, the name of the attack.
        epsilon: float, radius of the ball.
        norm: `"linf"`, `"l2"` or `"l1"`.
        batch_size: int.
        seed: int.
        chance: float, the accuracy of guessing. Defaults to `None`: one divided by the number of
            classes.
        transfer_from: another model. Defaults to `None`.
        counted: int array, shape `(num_examples,)`, the indices of the images that are examples.
            Defaults to `None`: all images.
        known_robust: bool array, shape `(num_examples,)`, the examples that the attack is known not
            to fool. Defaults to `None`: the attack is run when needed.
        counts: pair of ints: how many images the attack was run on and how many it fooled, if known
            for more images than these. Defaults to `None`.
        progress: stores the results of attacks by their fingerprints. Defaults to a store that
            saves nothing.
        predictions: pair of int arrays: the labels of all images that the model was run on,
            including misclassified ones, and the classes that it predicts for them. Defaults to
            `None`.
        mask: bool array of the shape of `x`: the values that attacks may change. Defaults to
            `None`: all values.
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
    known_robust: np.ndarray | None = None
    counts: tuple[int, int] | None = None
    progress: Progress = dataclasses.field(default_factory=Progress)
    predictions: tuple[np.ndarray, np.ndarray] | None = None
    mask: np.ndarray | None = None

    def __post_init__(self) -> None:
        self._found: dict[Hashable, Any] = {}
        self.is_joint = self.classifier.depends_on_batch
        self.examples = np.arange(len(self.x)) if self.counted is None else self.counted

    @property
    def range(self) -> Any:
        """The width of the attack's bounds: a float, or an array of the shape of one image.

        If the bounds are infinite, it is the range of the images' values.
        """
        width = self.attack.bounds[1] - self.attack.bounds[0]
        if np.isfinite(width).all():
            return width
        of_images = max(float(np.ptp(self.x.astype("float32"))), 1e-6)
        return np.where(np.isfinite(width), width, of_images) if np.ndim(width) else of_images

    @property
    def is_bounded(self) -> bool:
        """Whether attacks may change every value, and all values have finite bounds."""
        return self.mask is None and bool(
            np.isfinite(np.sum(self.attack.bounds[1] - self.attack.bounds[0]))
        )

    def radius(self, share: float) -> Any:
        """Returns the radius at which every value can move by this share of the bounds' range."""
        dimensions = {"l1": self.x[0].size, "l2": self.x[0].size ** 0.5}.get(self.norm, 1)
        return share * self.range * float(dimensions)

    @property
    def ball(self) -> Any:
        """The radius of the attacks: an array if the judged attack has one radius per value."""
        own: Any = self.attack.data.get("epsilon")
        return self.epsilon if not np.ndim(own) else own * (self.epsilon / np.max(own))

    @property
    def setting(self) -> dict[str, Any]:
        """The arguments that all attacks share with the judged attack."""
        names = ("bounds", "from_logits", "objective", "num_samples")
        return {name: getattr(self.attack, name) for name in names}

    @property
    def loss(self) -> str:
        """The loss that PGD maximizes: the judged attack's own loss if PGD has it, else `"ce"`."""
        loss = getattr(self.attack, "loss", None)
        return loss if loss in LOSSES else "ce"

    def pgd(self, num_steps: int = NUM_STEPS, epsilon: Any = None) -> PGD:
        """Returns plain PGD with the settings of the judged attack."""
        epsilon = self.ball if epsilon is None else epsilon
        return PGD(epsilon, num_steps=num_steps, norm=self.norm, loss=self.loss, **self.setting)

    def once(self, key: Hashable, compute: Callable[[], Any]) -> Any:
        """Returns `compute()`, computed only once per `key`."""
        if key not in self._found:
            self._found[key] = compute()
        return self._found[key]

    def robust(self, attack: Attack, among: np.ndarray | None = None) -> np.ndarray:
        """Returns which examples an attack does not fool, shape `(num_examples,)`.

        If `among` is given, only these examples are attacked. All other examples count as fooled.
        """
        if attack is self.attack and self.known_robust is not None:
            return self.known_robust
        key = attack.key, value_key(attack.data)
        return self.once(key, lambda: self._run(attack, among))

    def still_correct(self, x: np.ndarray) -> np.ndarray:
        """Returns the examples on which `x` does not fool the model, by the attacks' criterion."""
        attack = self.attack

        def margin(classifier: Classifier, x: Images, y: Labels, seed: Seed) -> Any:
            return Problem(attack, classifier, y, seed).margin(as_working_dtype(x))

        judge = self.classifier.compiled(("still correct", attack.key), margin, num_batched=2)
        return (self.on_images(judge, x) <= 0)[self.examples]

    def batched(self, function: Callable[..., Any]) -> np.ndarray:
        """Returns `function(x, y, seed)` on all examples as one array, with the same seed."""
        return self.on_images(function)[self.examples]

    def on_images(self, function: Callable[..., Any], x: np.ndarray | None = None) -> np.ndarray:
        """Returns `function(x, y, seed)` on all images, or on `x` in their place."""
        x = self.x.astype("float32") if x is None else x
        self.classifier.build(x)
        seed = backend.make_seed(self.seed)
        return in_batches(
            lambda rows: function(x[rows], self.y[rows], seed), len(x), self.batch_size
        )

    def predicted(self, seed: int) -> np.ndarray:
        """Returns the model's class scores for each example. A random model draws from `seed`."""
        return self.batched(lambda x, *_: self.classifier.scores(x, seed))

    def outputs(self) -> np.ndarray:
        """Returns the model's outputs in float32, shape `(num_examples, num_classes)`."""

        def compute() -> np.ndarray:
            return self.predicted(0).astype("float32")

        return self.once("outputs", compute)

    def probabilities(self) -> np.ndarray:
        """Returns the model's probabilities in float32, shape `(num_examples, num_classes)`."""
        p = self.outputs()
        if self.attack.from_logits:
            p = np.exp(p - p.max(axis=1, keepdims=True))
            p /= p.sum(axis=1, keepdims=True)
        return p

    def rounding(self) -> np.ndarray:
        """Returns the rounding error of the difference of two outputs, shape `(num_examples,)`."""
        outputs, precision = ops.convert_to_tensor(self.outputs()), self.classifier.precision
        if self.attack.from_logits:
            values = rounding(outputs, self.y[self.examples].astype("int32"), precision)
        else:
            values = rounding_of_probabilities(outputs, precision)
        return ops.convert_to_numpy(values)

    def share_of_ties(self) -> float:
        """Returns the share of examples whose two largest scores differ by at most rounding."""

        def compute() -> float:
            second, first = np.sort(self.outputs(), axis=1)[:, -2:].T
            return float(np.mean(first - second <= self.rounding()))

        return self.once("share of ties", compute)

    def _run(self, attack: Attack, among: np.ndarray | None) -> np.ndarray:
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
                if not radii(attack):  # A minimum-norm attack: its perturbations may be larger.
                    fooled = fooled & (result.norms[self.norm] <= self.epsilon)
                return {"fooled": fooled}

            name = f"check-{digest.hexdigest()[:16]}-{number:05}"
            robust[batch] = ~self.progress.attacked(name, run)["fooled"]
        return robust[self.examples] & among
