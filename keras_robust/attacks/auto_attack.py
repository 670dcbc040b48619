"""AutoAttack, a fixed ensemble of attacks."""

from typing import Any

import keras
import numpy as np

from keras_robust import scheduled, validation
from keras_robust.attacks.apgd import APGD
from keras_robust.attacks.attack import Attack
from keras_robust.attacks.ensemble import Ensemble
from keras_robust.attacks.fab import FAB
from keras_robust.attacks.insistent_apgd import InsistentAPGD
from keras_robust.attacks.meter import Cost
from keras_robust.attacks.problem import Problem
from keras_robust.attacks.result import AttackResult
from keras_robust.attacks.square import Square
from keras_robust.model.classifier import Classifier
from keras_robust.model.images import LazyImages
from keras_robust.types import Images, Labels, Objective, Scheduled, Seed, Tensor

# Number of draws of a random model over which each version averages.
_NUM_SAMPLES = {"standard": 1, "rand": 20, "fast": 1}


@keras.saving.register_keras_serializable(package="keras_robust")
class AutoAttack(Attack):
    """Runs a fixed set of attacks that need no tuning.

    Each attack runs only on the examples that no earlier attack has fooled.

    `version="standard"` is for deterministic models:

    1. `kr.attacks.APGD` on the cross-entropy, 100 steps,
    2. `kr.attacks.APGD` on the targeted difference-of-logits ratio, 9 target classes, 100 steps
       each,
    3. `kr.attacks.FAB`, 9 target classes, 100 steps each,
    4. `kr.attacks.Square`, 5000 queries, which needs no gradient.

    In L1, the first has 5 restarts, and the second has 5 target classes.

    `version="rand"` is for models that are random in inference mode. It runs `kr.attacks.APGD` on
    the cross-entropy and on the untargeted difference-of-logits ratio, 100 steps each, with 20
    draws for each gradient.

    `version="fast"` gives nearly the same robust accuracy in a fraction of the time:

    1. `kr.attacks.APGD` on the cross-entropy, 10 steps, which fool the model on most images that
       can be misclassified,
    2. `kr.attacks.APGD` on `z_t - z_y`, 50 steps for each of the 4 target classes with the nearest
       boundaries, by `(z_y - z_t) / ||grad_x (z_y - z_t)||` (`target_order="distance"`),
    3. the same from 20 other starts on the images in doubt, that is, where the lead
       `z_y - max_{j != y} z_j` has fallen below 6% of its value at `x`,
    4. `kr.attacks.Square`, 750 queries.

    Args:
        epsilon: float, or array that broadcasts to one example. Radius of the ball, in units of `x`
            (8/255 for images in [0, 1]).
        norm: `"linf"`, `"l2"` or `"l1"`. Defaults to `"linf"`.
        version: `"standard"`, `"rand"` or `"fast"`. Defaults to `"standard"`.
        bounds: pair of floats, or of arrays that broadcast to one example. Valid range of `x`.
            `None` means no bound. Defaults to `(0.0, 1.0)`.
        from_logits: bool. Whether the model returns logits rather than probabilities. Defaults to
            `True`.
        objective: callable `(model, x, y) -> scores` that the attacks differentiate instead of the
            model. It must return class scores. See `kr.attacks.Attack`. Square always runs the
            model itself. Defaults to `None`.

    Call arguments:
        Same as `kr.attacks.PGD`. `run(model, x, y, seed=None, verbose=0)` with `verbose=1` shows
        the current attack, the current round and an estimate of the remaining time.
        `ensemble(num_classes)` returns the `kr.attacks.Ensemble` that is run.

    Returns:
        Same as `kr.attacks.PGD`.

    Raises:
        ValueError: if an argument is out of its range; when called, as `kr.attacks.PGD`, or if
            `objective` does not return class scores.

    Example:

    >>> import keras, numpy as np, keras_robust as kr
    >>> model = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten(),
    ...                           keras.layers.Dense(10)])
    >>> x, y = np.random.rand(4, 8, 8, 1).astype("float32"), np.array([3, 1, 4, 1])
    >>> attack = kr.attacks.AutoAttack(epsilon=0.3)
    >>> int(attack.run(model, x, y, seed=0).success.sum())
    4

    The accuracy under `"standard"` is the most common way to compare robustness. Results are
    comparable only with unchanged attacks, so these have no further settings. Use
    `kr.attacks.Ensemble` to run other attacks.

    `"fast"` is meant for the development of a defence. It misses more adversarial examples in L2
    and L1, and saves less time in L1. If a model hides its gradient, Square decides the result, and
    `"standard"` gives it nearly seven times as many queries.

    Departures from the authors' code:

    - The attacks are those of the current code. The paper's first version had untargeted APGD and
      FAB, with 5 starts.
    - The authors' code does not support models with fewer than 4 classes, for which the targeted
      ratio is undefined. Here, `z_t - z_y` replaces the ratio. In `"rand"` with 2 classes, the
      margin replaces the untargeted ratio.
    - The authors' third version, `"plus"`, is not available.
    - `"fast"` is not from the authors. The order of its target classes is from Melamed, Yehudai and
      Shamir (2024), who run 9 targets in 100 steps on the ratio and no other attack.

    Reference:

    - [Croce and Hein, 2020](https://arxiv.org/abs/2003.01690), section 6
    - [Croce and Hein, 2021](https://arxiv.org/abs/2103.01208), section 4 (L1)
    - [Melamed, Yehudai and Shamir, 2024](https://arxiv.org/abs/2407.02240)
    """

    def __init__(
        self,
        epsilon: Scheduled,
        norm: str = "linf",
        version: str = "standard",
        bounds: tuple[float, float] = (0.0, 1.0),
        from_logits: bool = True,
        objective: Objective | None = None,
    ) -> None:
        self.version = validation.check_choice("version", version, _NUM_SAMPLES)
        super().__init__(
            bounds=bounds,
            from_logits=from_logits,
            objective=objective,
            num_samples=_NUM_SAMPLES[version],
        )
        self.epsilon = scheduled.check_scheduled("epsilon", epsilon)
        self.norm = validation.check_choice("norm", norm, ("linf", "l2", "l1"))

    def ensemble(self, num_classes: int) -> Ensemble:
        """Returns the attacks to run on a model with `num_classes` classes."""
        attacks: list[Attack]
        common: dict[str, Any] = {
            "epsilon": 0.0,
            "norm": self.norm,
            "bounds": self.bounds,
            "from_logits": self.from_logits,
        }
        white_box = {**common, "objective": self.objective, "num_samples": self.num_samples}
        if self.version == "rand":
            dlr = "dlr" if num_classes >= 3 else "margin"
            attacks = [APGD(loss="ce", **white_box), APGD(loss=dlr, **white_box)]
        elif self.version == "fast":
            near: dict[str, Any] = {"loss": "margin_targeted", "target_order": "distance"}
            attacks = [
                APGD(loss="ce", num_steps=10, **white_box),
                InsistentAPGD(num_targets=4, num_steps=50, num_restarts=21, **near, **white_box),
                Square(num_queries=750, **common),
            ]
        else:
            dlr = "dlr_targeted" if num_classes >= 4 else "margin_targeted"
            num_restarts, num_targets = (5, 5) if self.norm == "l1" else (1, 9)
            attacks = [
                APGD(loss="ce", num_restarts=num_restarts, **white_box),
                APGD(loss=dlr, num_targets=num_targets, **white_box),
                FAB(num_targets=9, **white_box),
                Square(num_queries=5000, **common),
            ]
        # Set after construction, because the radius is a tensor inside a traced function.
        return Ensemble([attack.changed(epsilon=self.epsilon) for attack in attacks])

    def check_classifier(self, classifier: Classifier, x: np.ndarray | LazyImages) -> None:
        self.ensemble(classifier.num_classes).check_classifier(classifier, x)

    def round_costs(self, num_classes: int) -> list[Cost]:
        return self.ensemble(num_classes).round_costs(num_classes)

    def run_checked(self, classifier: Classifier, *args: Any, **kwargs: Any) -> AttackResult:
        return self.ensemble(classifier.num_classes).run_checked(classifier, *args, **kwargs)

    def perturb_images(
        self, classifier: Classifier, x: Images, labels: Labels, seed: Seed, mask: Tensor = None
    ) -> Tensor:
        num_classes = Problem(self, classifier, labels, seed).num_classes(x)
        return self.ensemble(num_classes).perturb_images(classifier, x, labels, seed, mask)
