"""A row of a report of which the figures are known, and not what they were computed from."""

import dataclasses
from typing import Any

from keras_robust.report.row import radius_in_words


@dataclasses.dataclass
class SavedRow:
    """The figures of a `Row` as JSON holds them.

    It stands for a `Row` wherever a report is shown, and has no arrays of one value for each
    example.

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
            f"A report that was saved as figures alone has no {name!r}: what was found on each "
            "example is in `report.npz`, which is missing beside its `report.json`."
        )

    @property
    def radius(self) -> str:
        """The radii in words."""
        return radius_in_words(self.radii, self.attack)

    def perturbation(self, norm: str) -> tuple[float, float] | None:
        """Median and largest norm of the perturbations that fool the model; `None` if none do."""
        median, largest = (self.figures.get(f"{name}_{norm}") for name in ("median", "largest"))
        return None if median is None or largest is None else (median, largest)

    def cost(self, name: str) -> float | None:
        """Mean over the attacked examples of the number of gradients, or of evaluations."""
        return self.figures[f"mean_{name}"]

    def to_dict(self) -> dict[str, Any]:
        """The figures, ready for JSON."""
        return self.figures
