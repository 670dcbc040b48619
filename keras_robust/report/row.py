"""One row of a report: the accuracy on clean images, or under one attack."""

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

CLEAN = "clean"
WORST_CASE = "worst case"
CERTIFIED = "certified"
NORMS = {"linf": "L-inf", "l2": "L2", "l1": "L1"}
COSTS = ("num_gradients", "num_evaluations")

_Z_95 = 1.959964


def wilson_interval(successes: int, trials: int) -> tuple[float, float]:
    """Computes the 95% confidence interval of a proportion (Wilson, 1927)."""
    share, z2 = successes / trials, _Z_95**2
    centre = (share + z2 / (2 * trials)) / (1 + z2 / trials)
    half = _Z_95 * math.sqrt(share * (1 - share) / trials + z2 / (4 * trials**2))
    half /= 1 + z2 / trials
    return max(0.0, centre - half), min(1.0, centre + half)


def radius_in_words(radii: Mapping[str, float], attack: str | None) -> str:
    """Returns the largest radius in each norm, as shown in tables."""
    if not radii and attack is not None:
        return "no limit"
    return " or ".join(f"{NORMS.get(norm, norm)} {value:.4g}" for norm, value in radii.items())


def shown_norms(rows: Iterable[Any]) -> list[str]:
    """Returns the norms that tables show. L1 is one only if an attack has an L1 radius."""
    has_l1 = any("l1" in row.radii for row in rows)
    return [norm for norm in NORMS if norm != "l1" or has_l1]


@dataclasses.dataclass
class Row:
    """The accuracy on clean images, under one attack, or in the worst case.

    Args:
        name: string.
        correct: bool array, shape `(num_examples,)`: which examples are classified correctly, after
            the attack if there is one.
        attack: string, the attack with its arguments. Defaults to `None`.
        radii: mapping of norms to the largest radius that was allowed, in units of the images.
            Defaults to an empty mapping: there was no radius, or no attack.
        attacked: bool array, shape `(num_examples,)`: which examples were attacked. Defaults to
            `None`.
        measures: mapping to arrays of one value per example. The names are `"linf"`, `"l2"` and
            `"l1"`, the norms of the perturbations, `"num_gradients"` and `"num_evaluations"`.
            Defaults to an empty mapping.
        without_gradient: list of strings, the classes of attacks that found no gradient and so did
            not change their examples. Defaults to an empty list.
    """

    name: str
    correct: np.ndarray
    attack: str | None = None
    radii: dict[str, float] = dataclasses.field(default_factory=dict)
    attacked: np.ndarray | None = None
    measures: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    without_gradient: list[str] = dataclasses.field(default_factory=list)

    def record(self, batch: np.ndarray, found: Mapping[str, np.ndarray]) -> None:
        """Records the results of an attack on a batch.

        Args:
            batch: int array, the indices of the examples in the batch.
            found: mapping of names to arrays, the results.
        """
        assert self.attacked is not None
        self.attacked[batch] = True
        self.correct[batch] = ~found["success"]
        for name in (*NORMS, *COSTS):
            values = self.measures.setdefault(name, np.zeros(len(self.correct)))
            values[batch] = found[name]
        new = [n for n in found["without_gradient"].tolist() if n not in self.without_gradient]
        self.without_gradient += new

    def of(self, examples: np.ndarray) -> "Row":
        """Returns the row of the examples with the given indices."""
        return dataclasses.replace(
            self,
            correct=self.correct[examples],
            attacked=None if self.attacked is None else self.attacked[examples],
            measures={name: values[examples] for name, values in self.measures.items()},
        )

    @property
    def accuracy(self) -> float:
        return float(self.correct.mean())

    @property
    def interval(self) -> tuple[float, float]:
        """95% confidence interval of the accuracy."""
        return wilson_interval(int(self.correct.sum()), len(self.correct))

    @property
    def radius(self) -> str:
        """The radii as text."""
        return radius_in_words(self.radii, self.attack)

    @property
    def note(self) -> str:
        """A remark on the row. Usually empty."""
        if not self.without_gradient:
            return ""
        return f"no gradient: {', '.join(self.without_gradient)} could not run"

    @property
    def num_attacked(self) -> int | None:
        """Number of attacked examples; `None` without an attack."""
        return None if self.attacked is None else int(self.attacked.sum())

    @property
    def num_fooled(self) -> int | None:
        """Number of attacked examples that are misclassified after the attack."""
        return None if self.attacked is None else int((self.attacked & ~self.correct).sum())

    def perturbation(self, norm: str) -> tuple[float, float] | None:
        """Returns the median and the largest norm of the perturbations that fool the model.

        Returns `None` if there are none.
        """
        if self.attacked is None or norm not in self.measures:
            return None
        values = self.measures[norm][self.attacked & ~self.correct]
        return (float(np.median(values)), float(values.max())) if len(values) else None

    def cost(self, name: str) -> float | None:
        """Returns the mean number of gradients, or of evaluations, per attacked example."""
        if self.attacked is None or name not in self.measures:
            return None
        return float(self.measures[name][self.attacked].mean())

    def to_dict(self) -> dict[str, Any]:
        """Returns the figures, ready for JSON."""
        norms = {norm: self.perturbation(norm) for norm in NORMS}
        return {
            "name": self.name,
            "accuracy": self.accuracy,
            "confidence_95": list(self.interval),
            "attack": self.attack,
            "note": self.note,
            "radii": dict(self.radii),
            "num_attacked": self.num_attacked,
            "num_fooled": self.num_fooled,
            **{f"median_{norm}": pair and pair[0] for norm, pair in norms.items()},
            **{f"largest_{norm}": pair and pair[1] for norm, pair in norms.items()},
            **{f"mean_{name}": self.cost(name) for name in COSTS},
        }
