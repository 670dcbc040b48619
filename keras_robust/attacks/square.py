"""Square attack."""

import math
from typing import Any

import keras
from keras import ops

from keras_robust import backend, validation
from keras_robust.attacks.attack import Attack
from keras_robust.attacks.problem import Problem
from keras_robust.attacks.square_search import SEARCHES
from keras_robust.ops import per_example

# A round ends when the number of queries has grown by this factor.
_FIRST_CHUNK, _GROWTH = 10, 1.25


@keras.saving.register_keras_serializable(package="keras_robust")
class Square(Attack):
    """Perturbs inputs by random search with square-shaped changes: needs no gradient.

    Args:
        epsilon: float. Radius of the ball, in units of `x` (8/255 for images in [0, 1]).
        norm: `"linf"` or `"l2"`. Defaults to `"linf"`.
        num_queries: int. `N`, how many images the model is asked about for each restart.
            Defaults to `5000`.
        initial_fraction: float. `p`, the share of the image that the first squares cover.
            Defaults to `0.8`.
        num_restarts: int. Defaults to `1`.
        targeted: bool. `False`: `y` holds the true labels, and the attack leads away from them.
            `True`: `y` holds the labels that the attack leads to. Defaults to `False`.
        bounds: pair of floats. Valid range of `x`. Defaults to `(0.0, 1.0)`.
        from_logits: bool. Whether the model returns logits, rather than probabilities.
            Defaults to `True`.
        num_samples: int. How many draws of a random model each query is averaged over.
            Defaults to `1`.

    Call arguments, returns, raises: as `kr.attacks.PGD`.

    Example:

    >>> import keras_robust as kr
    >>> attack = kr.attacks.Square(epsilon=8 / 255, num_queries=1000)
    """

    def __init__(
        self,
        epsilon: float,
        norm: str = "linf",
        num_queries: int = 5000,
        initial_fraction: float = 0.8,
        num_restarts: int = 1,
        targeted: bool = False,
        bounds: tuple[float, float] = (0.0, 1.0),
        from_logits: bool = True,
        num_samples: int = 1,
    ) -> None:
        super().__init__(
            targeted=targeted, bounds=bounds, from_logits=from_logits, num_samples=num_samples
        )
        self.epsilon = validation.check_number("epsilon", epsilon)
        self.norm = validation.check_choice("norm", norm, ("linf", "l2"))
        self.num_queries = validation.check_count("num_queries", num_queries)
        self.initial_fraction = validation.check_number(
            "initial_fraction", initial_fraction, exclusive=True
        )
        self.num_restarts = validation.check_count("num_restarts", num_restarts)

    def num_rounds(self, num_classes: int) -> int:
        return self.num_restarts * len(self._chunks())

    def improves(self, x: Any, new: Any, new_margin: Any, best: Any, best_margin: Any) -> Any:
        # Within a restart margins never fall; a new restart takes the place of the old one.
        return new_margin > -float("inf")

    def generate(
        self, problem: Problem, x: Any, start: Any, index: Any, seed: Any
    ) -> tuple[Any, Any, Any]:
        ends = self._chunks()
        chunk = index % len(ends)
        begins = ops.convert_to_tensor([1, *ends[:-1]], dtype="int32")
        first = ops.take(begins, chunk)
        end = ops.take(ops.convert_to_tensor(ends, dtype="int32"), chunk)
        search = SEARCHES[self.norm](
            x, self.epsilon, self.norm, self.bounds, self.num_queries, self.initial_fraction
        )

        def margin_of(images: Any, query: Any) -> Any:
            return problem.at(query).margin(ops.reshape(images, ops.shape(x)))

        initial = search.initial(backend.fold_in(seed, 0))
        begin = ops.where(chunk > 0, ops.reshape(start, ops.shape(initial)), initial)
        margin = margin_of(begin, 0)

        def unfinished(query: Any, z: Any, margin: Any) -> Any:
            return ops.logical_and(query < end, ops.any(margin <= 0))

        def step(query: Any, z: Any, margin: Any) -> tuple[Any, Any, Any]:
            new = search.proposal(z, query, backend.fold_in(seed, query))
            new_margin = margin_of(new, query)
            better = ops.logical_and(new_margin > margin, margin <= 0)
            z = ops.where(per_example(better, z), new, z)
            return query + 1, z, ops.where(better, new_margin, margin)

        query, z, _ = ops.while_loop(unfinished, step, (first, begin, margin))
        return ops.reshape(z, ops.shape(x)), 0, (query - first + 1) * self.num_samples

    def _chunks(self) -> list[int]:
        """After how many queries each round ends."""
        ends = [min(_FIRST_CHUNK, self.num_queries)]
        while ends[-1] < self.num_queries:
            ends.append(min(math.ceil(_GROWTH * ends[-1]), self.num_queries))
        return ends

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        del config["objective"]
        return {
            "epsilon": self.epsilon,
            "norm": self.norm,
            "num_queries": self.num_queries,
            "initial_fraction": self.initial_fraction,
            "num_restarts": self.num_restarts,
            **config,
        }
