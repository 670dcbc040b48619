"""Square attack."""

import math

import keras
import numpy as np
from keras import ops

from keras_robust import backend, scheduled, validation
from keras_robust.attacks.attack import Attack
from keras_robust.attacks.meter import Cost
from keras_robust.attacks.problem import Problem
from keras_robust.attacks.result import RoundResult
from keras_robust.attacks.square_search import SEARCHES
from keras_robust.model.classifier import Classifier
from keras_robust.ops.balls import per_example
from keras_robust.types import Images, Scheduled, Seed, Tensor

# Queries of the first round. Each later round ends when the total number of queries has grown by
# the factor `_GROWTH`, or by `_LONGEST_CHUNK`, so that the last rounds do not take hours.
_FIRST_CHUNK, _GROWTH, _LONGEST_CHUNK = 10, 1.25, 250


@keras.saving.register_keras_serializable(package="keras_robust")
class Square(Attack):
    """Perturbs inputs by random search with square-shaped changes, without gradients.

    From `z_0` in the ball around `x`, the attack computes

        z_i = P(z_{i-1} + delta_i) if m(P(z_{i-1} + delta_i)) > m(z_{i-1}), else z_{i-1}

    for `i = 1, ..., N - 1`, where `P` is the projection to the ball and to `bounds`, and
    `m(z) = max_{j != y} f_j(z) - f_y(z)` is the margin of the logits `f`. It stops on an example
    once the margin is positive. `delta_i` changes a window at a random place, a square of side
    `h_i = round(sqrt(p_i * height * width))`. `p_i` starts at `p` and is halved after query 10, 50,
    200, 500, 1000, 2000, 4000, 6000 and 8000 of 10,000, or at the same fractions of `N`. The change
    depends on the norm. `r` are random signs, drawn for each channel:

    - L-infinity: `z_0 = x + epsilon * r`, with separate signs for each column, which gives vertical
      stripes. `delta_i` sets the window to `x + epsilon * r`.
    - L2: `z_0 - x` consists of 5 x 5 tiles of `r * eta`, with a total length of `epsilon`. `eta`
      has length 1, and a positive and a negative half, each largest in its middle (eq. 2). In the
      perturbation `nu = z_{i-1} - x`, the window `W_1` takes over the mass of a second window,
      `W_2`:

          t = r * eta + nu_{W_1} / ||nu_{W_1}||_2
          nu_{W_1}, nu_{W_2} <- t / ||t||_2 * sqrt(||nu_{W_1 + W_2}||_2^2 + u / channels), 0

      in each channel, where `u = epsilon^2 - ||nu||_2^2` is the unused part of the radius.
    - L1 (Croce and Hein, 2021): as L2, with L1 norms, `u = epsilon - ||nu||_1`, and a more pointed
      `eta`. With `c` channels, the window gets `c` times that length. The exact projection then
      reduces all values by the same amount, so that only the largest remain.

    Args:
        epsilon: float, or array that broadcasts to one example. Radius of the ball, in units of `x`
            (8/255 for images in [0, 1]).
        norm: `"linf"`, `"l2"` or `"l1"`. Defaults to `"linf"`.
        num_queries: int. `N`, the number of images on which the model is queried in each restart.
            Defaults to `5000`.
        initial_fraction: float. `p`, the fraction of the image that the first squares cover.
            Defaults to `0.8`.
        num_restarts: int. Number of random starts. Defaults to `1`.
        targeted: bool. If `False`, `y` holds the true labels, and the attack moves predictions away
            from them. If `True`, `y` holds the target labels, and the attack moves predictions
            towards them. Defaults to `False`.
        bounds: pair of floats, or of arrays that broadcast to one example. Valid range of `x`.
            `None` means no bound. Defaults to `(0.0, 1.0)`.
        from_logits: bool. Whether the model returns logits rather than probabilities. Defaults to
            `True`.
        num_samples: int. Number of draws of a random model over which each query is averaged.
            Defaults to `1`.
        data_format: `"channels_last"` if `x` has the shape `(batch_size, height, width, channels)`,
            or `"channels_first"` if it has the shape `(batch_size, channels, height, width)`. Has
            no effect on vectors and on inputs of shape `(batch_size, width, channels)`. Defaults to
            `None`: `keras.config.image_data_format()` at construction.

    Call arguments:
        Same as `kr.attacks.PGD`. A call warns if the shape of `x` looks like the other
        `data_format`.

    Returns:
        Same as `kr.attacks.PGD`.

    Raises:
        ValueError: same as `kr.attacks.PGD`; when called, if the model is a `kr.BlackBox` that
            returns classes.

    Example:

    >>> import keras_robust as kr
    >>> attack = kr.attacks.Square(epsilon=8 / 255, num_queries=1000)

    Departures from the authors' code:

    - In L2 and L1, their code makes the sides of windows odd and at least 3, and stretches each
      perturbation to length `epsilon` before clipping to `bounds`. Here, a window may be a single
      pixel, and the length lost by clipping is left to later windows.
    - A window that would be higher or wider than the image keeps its area instead of its shape. A
      vector is an image of one row.
    - With a `mask` or a radius of 0, windows lie inside the smallest rectangle around the values
      that may change, or cover it.

    Reference:

    - [Andriushchenko et al., 2020](https://arxiv.org/abs/1912.00049), Algorithms 1 to 3
    - [Croce and Hein, 2021](https://arxiv.org/abs/2103.01208), section 4 (L1)
    """

    uses_gradient = False

    def __init__(
        self,
        epsilon: Scheduled,
        norm: str = "linf",
        num_queries: int = 5000,
        initial_fraction: float = 0.8,
        num_restarts: int = 1,
        targeted: bool = False,
        bounds: tuple[float, float] = (0.0, 1.0),
        from_logits: bool = True,
        num_samples: int = 1,
        data_format: str | None = None,
    ) -> None:
        super().__init__(
            targeted=targeted, bounds=bounds, from_logits=from_logits, num_samples=num_samples
        )
        self.epsilon = scheduled.check_scheduled("epsilon", epsilon)
        self.norm = validation.check_choice("norm", norm, SEARCHES)
        self.num_queries = validation.check_count("num_queries", num_queries)
        self.initial_fraction = validation.check_number(
            "initial_fraction", initial_fraction, exclusive=True, maximum=1.0
        )
        self.num_restarts = validation.check_count("num_restarts", num_restarts)
        self.data_format = validation.check_data_format(data_format)

    def check_classifier(self, classifier: Classifier, x: Images) -> None:
        super().check_classifier(classifier, x)
        if classifier.returns_classes:
            raise ValueError(
                "Square needs class scores, but this `keras_robust.BlackBox` returns only "
                "predicted classes. Use `keras_robust.attacks.HopSkipJump` instead. "
                f"Received: model={classifier.model!r}"
            )
        validation.warn_of_other_data_format(x.shape, self.data_format)

    def num_rounds(self, num_classes: int) -> int:
        return self.num_restarts * len(self._chunks())

    def round_costs(self, num_classes: int) -> list[Cost]:
        sizes = np.diff(self._chunks(), prepend=0).tolist()
        # In addition to its queries, a round evaluates its first image and judges its last.
        costs = [Cost(False, (size + 2) * self.num_samples) for size in sizes]
        return costs * self.num_restarts

    def improves(
        self, x: Images, new: Tensor, new_margin: Tensor, best: Tensor, best_margin: Tensor
    ) -> Tensor:
        # Margins never fall within a restart. A new restart replaces the failed one before it.
        return new_margin > -float("inf")

    def generate(
        self, problem: Problem, x: Images, start: Tensor, index: Tensor, seed: Seed
    ) -> RoundResult:
        ends = self._chunks()
        chunk = index % len(ends)
        begins = ops.convert_to_tensor([1, *ends[:-1]], dtype="int32")
        first = ops.take(begins, chunk)
        end = ops.take(ops.convert_to_tensor(ends, dtype="int32"), chunk)
        search = SEARCHES[self.norm](
            x,
            self.epsilon,
            self.norm,
            self.bounds,
            self.num_queries,
            self.initial_fraction,
            self.data_format,
        )

        def margin_of(z: Tensor, query: Tensor) -> Tensor:
            return problem.at(query).margin(search.to_model(z))

        initial = search.initial(backend.fold_in(seed, 0))
        begin = ops.where(chunk > 0, search.from_model(start), initial)
        margin = margin_of(begin, 0)

        def unfinished(query: Tensor, z: Tensor, margin: Tensor) -> Tensor:
            return ops.logical_and(query < end, ops.any(margin <= 0))

        def step(query: Tensor, z: Tensor, margin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            new = search.proposal(z, query, backend.fold_in(seed, query))
            new_margin = margin_of(new, query)
            better = ops.logical_and(new_margin > margin, margin <= 0)
            z = ops.where(per_example(better, z), new, z)
            return query + 1, z, ops.where(better, new_margin, margin)

        query, z, _ = problem.while_loop(unfinished, step, (first, begin, margin))
        num_queries = (query - first + 1) * self.num_samples
        return RoundResult(search.to_model(z), 0, num_queries)

    def _chunks(self) -> list[int]:
        """Returns the number of queries after which each round ends."""
        ends = [min(_FIRST_CHUNK, self.num_queries)]
        while ends[-1] < self.num_queries:
            end = min(math.ceil(_GROWTH * ends[-1]), ends[-1] + _LONGEST_CHUNK)
            ends.append(min(end, self.num_queries))
        return ends
