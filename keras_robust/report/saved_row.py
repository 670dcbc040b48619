"""A row of a saved report that was loaded without its arrays."""

import dataclasses
from typing import Any

from keras_robust.report.row import radius_in_words


@dataclasses.dataclass
class SavedRow:
    """The figures of a `Row` as JSON holds them.

    It stands in for a `Row` wherever a report is shown, but has no values per example.

    Args:
        figures: mapping, as `Row.to_dict` returns it.
    """

    figures: dict[str, Any]

    def __post_init__(self) -> None:
        self.name: str = self.figures["name"]
        self.accuracy: float = self.figures["accuracy"]
        self.interval: tuple[float, float] = tuple(self.figures["confidence_95"])
        self.attack: str | None = self.figures["attack"]
        self.radii: dict[str, float] = dict(self.figures["radii"])
        self.note: str = self.figures["note"]
        self.num_attacked: int | None = self.figures["num_attacked"]
        self.num_fooled: int | None = self.figures["num_fooled"]

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(
            f"A report that was loaded without its `report.npz` has no {name!r}: the results for "
            "each example are in that `report.npz`."
        )

    @property
    def radius(self) -> str:
        """The radii as text."""
        return radius_in_words(self.radii, self.attack)

    def perturbation(self, norm: str) -> tuple[float, float] | None:
        """Returns the median and the largest norm of the perturbations that fool the model.

        Returns `None` if there are none.
        """
        median, largest = (self.figures.get(f"{name}_{norm}") for name in ("median", "largest"))
        return None if median is None or largest is None else (median, largest)

    def cost(self, name: str) -> float | None:
        """Returns the mean number of gradients, or of evaluations, per attacked example."""
        return self.figures[f"mean_{name}"]

    def to_dict(self) -> dict[str, Any]:
        """Returns the figures, ready for JSON."""
        return self.figures
