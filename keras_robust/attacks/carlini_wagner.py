"""The L2 attack of Carlini and Wagner."""

from typing import Any

import keras
from keras import ops

from keras_robust import validation
from keras_robust.attacks.adam_search import NUM_HALVINGS, AdamSearch, Search
from keras_robust.attacks.attack import Attack
from keras_robust.attacks.meter import Cost
from keras_robust.attacks.problem import Problem
from keras_robust.attacks.result import RoundResult
from keras_robust.ops.balls import per_example_where
from keras_robust.types import Images, Objective, Seed, Tensor

_MIN_STEPS_PER_ROUND = 10


@keras.saving.register_keras_serializable(package="keras_robust")
class CarliniWagnerL2(Attack):
    """Searches with Adam for the nearest misclassified image in the L2 norm.

        min_w ||x' - x||_2^2 + c * max(-kappa, z_y(x') - max_{j != y} z_j(x'))
        x' = (tanh(w) + 1) / 2    (scaled to `bounds`)

    The change of variables keeps `x'` inside `bounds`. The attack keeps the nearest iterate with
    `max_{j != y} z_j - z_y >= kappa`. It searches for `c` separately for each example. While every
    `c` has failed to give such an image, `c` is multiplied by 10. While every `c` has succeeded, it
    is divided by 4. Afterwards, `c` is the geometric mean of the largest value that has failed and
    the smallest that has succeeded. Finally, the image is moved along the segment towards `x` as
    far as it stays misclassified.

    The attack has no `epsilon`: it perturbs each image as much as necessary, so almost every
    classifier has a robust accuracy of 0% under it. Its useful result is the distance,
    `run(...).norms["l2"]`.

    Args:
        confidence: float. `kappa`, in units of the logits. Defaults to `0.0`.
        learning_rate: float. Learning rate of Adam. Defaults to `0.01`.
        num_steps: int. Maximum number of Adam steps for each `c`. Defaults to `1000`.
        initial_const: float. The first `c`. A number suits only logits of a certain scale. Defaults
            to `None`: for each example `10 * 2 * (z_y - max_{j != y} z_j + kappa) / ||g||_2^2` at
            `x`, where `g` is the gradient of the difference. This is ten times the value that would
            suffice if the logits were linear.
        binary_search_steps: int. Number of values of `c` to try. Defaults to `9`.
        targeted: bool. If `False`, `y` holds the true labels, and the attack moves predictions away
            from them. If `True`, `y` holds the target labels, and the attack moves predictions
            towards them. Defaults to `False`.
        bounds: pair of floats, or of arrays that broadcast to one example. Valid range of `x`.
            `None` means no bound. Defaults to `(0.0, 1.0)`.
        from_logits: bool. Whether the model returns logits rather than probabilities. Defaults to
            `True`.
        objective: callable `(model, x, y) -> scores` that the attack differentiates instead of the
            model. It must return class scores. See `kr.attacks.Attack`. Defaults to `None`.
        num_samples: int. Number of draws of a random model over which each gradient is averaged.
            Defaults to `1`.

    Call arguments:
        Same as `kr.attacks.PGD`. `seed` only has an effect on random models.

    Returns:
        Tensor, same shape and dtype as `x`, inside `bounds`. An example keeps its original image if
        the attack fails on it, or if it is already misclassified (by `confidence`).

    Raises:
        ValueError: if an argument is out of its range; when called, if `x`, `y` or the model's
            outputs are not as described above, or if `objective` does not return class scores.

    Example:

    >>> import keras, numpy as np, keras_robust as kr
    >>> model = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten(),
    ...                           keras.layers.Dense(10)])
    >>> x, y = np.random.rand(4, 8, 8, 1).astype("float32"), np.array([3, 1, 4, 1])
    >>> attack = kr.attacks.CarliniWagnerL2(learning_rate=0.1, num_steps=50)
    >>> distances = attack.run(model, x, y).norms["l2"]

    Wang et al. (2018) and Wang and Osher (2019) use a fixed `c`:
    `CarliniWagnerL2(initial_const=10.0, binary_search_steps=1, learning_rate=rate,
    num_steps=num_steps)`. The former use a rate of 0.01 and 10 steps. The latter use a rate of
    0.006 and 50 steps on CIFAR-10, and a rate of 0.003 and 100 steps on MNIST. With so few steps,
    the attack misses most of the images that can be misclassified, so it is a weak measure of
    robustness.

    Departures from the papers and the authors' code, all of which bring the image nearer or save
    gradients:

    - The final image is moved towards `x`, for 8 evaluations of the model. Where a network's
      gradient is informative only close to the current point, as after adversarial training, Adam's
      iterates are well beyond the boundary.
    - `c` starts from an estimate rather than from 0.001, and the search for it is on a logarithmic
      scale.
    - Values at a bound start at `|tanh(w)| = 0.999` rather than 0.999999, since Adam then needs
      fewer steps to move them.
    - Adam stops early for each example separately: once some `c` has given an image, it stops when
      neither the loss nor the distance has fallen by half a percent in a tenth of the steps (at
      least 10). The authors' code stops for the whole batch, when the sum of the losses has not
      fallen by 0.01%.

    Reference:

    - [Carlini and Wagner, 2017](https://arxiv.org/abs/1608.04644), section V
    - Wang et al., 2018, Adversarial Defense via Data Dependent Activation Function and Total
      Variation Minimization, eqs. 7 to 10
    - Wang and Osher, 2019, Graph Interpolating Activation Improves Both Natural and Robust
      Accuracies in Data-Efficient Deep Learning, section 3.2.1
    """

    stops_when_fooled = False

    def __init__(
        self,
        confidence: float = 0.0,
        learning_rate: float = 0.01,
        num_steps: int = 1000,
        initial_const: float | None = None,
        binary_search_steps: int = 9,
        targeted: bool = False,
        bounds: tuple[float, float] = (0.0, 1.0),
        from_logits: bool = True,
        objective: Objective | None = None,
        num_samples: int = 1,
    ) -> None:
        super().__init__(
            targeted=targeted,
            bounds=bounds,
            from_logits=from_logits,
            objective=objective,
            num_samples=num_samples,
        )
        self.confidence = validation.check_number("confidence", confidence)
        self.learning_rate = validation.check_number("learning_rate", learning_rate, exclusive=True)
        self.num_steps = validation.check_count("num_steps", num_steps)
        if initial_const is not None:
            initial_const = validation.check_number("initial_const", initial_const, exclusive=True)
        self.initial_const = initial_const
        self.binary_search_steps = validation.check_count(
            "binary_search_steps", binary_search_steps
        )

    def num_rounds(self, num_classes: int) -> int:
        return self.binary_search_steps * self.rounds_per_search + 1

    def round_costs(self, num_classes: int) -> list[Cost]:
        descent = Cost(True, self.steps_per_round * self.num_samples)
        approach = Cost(False, NUM_HALVINGS * self.num_samples)
        return [descent] * (self.num_rounds(num_classes) - 1) + [approach]

    def improves(
        self, x: Images, new: Tensor, new_margin: Tensor, best: Tensor, best_margin: Tensor
    ) -> Tensor:
        # `generate` returns `start` where it finds nothing nearer.
        return (new_margin > 0) | (best_margin <= 0)

    def initial_state(self, x: Images) -> tuple[Any, ...]:
        return AdamSearch(self).initial_state(x)

    def is_active(self, index: Tensor, margin: Tensor, state: tuple[Tensor, ...]) -> Tensor:
        search = Search(*state)
        is_first_part = index % self.rounds_per_search == 0
        return (search.shortest > 0) & (search.improving | is_first_part)

    def generate(
        self, problem: Problem, x: Images, start: Tensor, index: Tensor, seed: Seed, *state: Any
    ) -> RoundResult:
        before, active = Search(*state), self.is_active(index, None, state)
        adam = AdamSearch(self)
        best, num_gradients, num_evaluations, after = problem.cond(
            ops.equal(index, self.num_rounds(0) - 1),
            lambda: adam.approach(problem, x, start, before),
            lambda: adam.descend(problem, x, start, index, before, active),
        )
        best = per_example_where(active, best, start)
        state = tuple(per_example_where(active, *pair) for pair in zip(after, before, strict=True))
        return RoundResult(best, num_gradients, num_evaluations, state)

    @property
    def steps_per_round(self) -> int:
        return max(-(-self.num_steps // 10), _MIN_STEPS_PER_ROUND)

    @property
    def rounds_per_search(self) -> int:
        return -(-self.num_steps // self.steps_per_round)
