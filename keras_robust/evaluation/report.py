"""What an evaluation has found."""

import dataclasses
import json
import math
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from keras_robust import backend
from keras_robust.evaluation import plots

CLEAN = "clean"
WORST_CASE = "worst case"
_Z_95 = 1.959964


def wilson_interval(successes: int, trials: int) -> tuple[float, float]:
    """95% confidence interval of a proportion (Wilson, 1927)."""
    share, z2 = successes / trials, _Z_95**2
    centre = (share + z2 / (2 * trials)) / (1 + z2 / trials)
    half = _Z_95 * math.sqrt(share * (1 - share) / trials + z2 / (4 * trials**2))
    half /= 1 + z2 / trials
    return max(0.0, centre - half), min(1.0, centre + half)


@dataclasses.dataclass
class Row:
    """Accuracy under one attack.

    Args:
        name: string.
        correct: bool array, shape `(num_examples,)`: which examples are still classified
            correctly.
        attack: string, the attack with its arguments. Defaults to `None`.
        max_perturbation: float, the largest change of any value of any image. Defaults to
            `None`.
    """

    name: str
    correct: np.ndarray
    attack: str | None = None
    max_perturbation: float | None = None

    @property
    def accuracy(self) -> float:
        return float(self.correct.mean())

    def to_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "accuracy": self.accuracy,
            "confidence_95": list(wilson_interval(int(self.correct.sum()), len(self.correct))),
            "attack": self.attack,
            "max_perturbation": self.max_perturbation,
        }


@dataclasses.dataclass
class Report:
    """A classifier's accuracy, clean and under attacks; made by `kr.evaluate`.

    Args:
        num_examples: int.
        batch_size: int.
        seed: int.
        worst_case_only: bool, whether each attack had only what those before it left.
        sample_images: the first images.
        sample_labels: their labels.
        rows: list of `Row`, the last one for the worst case. Defaults to an empty list.
        samples: mapping of row names to the first images, perturbed, and their predicted
            classes. Defaults to an empty mapping.
    """

    num_examples: int
    batch_size: int
    seed: int
    worst_case_only: bool
    sample_images: np.ndarray
    sample_labels: np.ndarray
    rows: list[Row] = dataclasses.field(default_factory=list)
    samples: dict[str, tuple[np.ndarray, np.ndarray]] = dataclasses.field(default_factory=dict)

    def add(
        self, row: Row, images: np.ndarray | None = None, classes: np.ndarray | None = None
    ) -> None:
        """Adds a row and, where there are any, its sample images and their classes."""
        self.rows.append(row)
        if images is not None and classes is not None:
            self.samples[row.name] = images, classes

    def row(self, name: str) -> Row:
        """The row of an attack, `"clean"` or `"worst case"`."""
        for row in self.rows:
            if row.name == name:
                return row
        raise ValueError(
            f"Argument `name` must be one of {[row.name for row in self.rows]}. "
            f"Received: name={name!r}"
        )

    def accuracy(self, name: str) -> float:
        """The accuracy in a row, from 0 to 1."""
        return self.row(name).accuracy

    def to_dict(self) -> dict[str, Any]:
        """Everything but the images, ready for JSON."""
        return {
            "num_examples": self.num_examples,
            "batch_size": self.batch_size,
            "seed": self.seed,
            "worst_case_only": self.worst_case_only,
            "complete": any(row.name == WORST_CASE for row in self.rows),
            "backend": keras.backend.backend(),
            "device": backend.device(),
            "keras": keras.version(),
            "rows": [row.to_dict() for row in self.rows],
        }

    def summary(self) -> str:
        """Prints the table; returns it too."""
        width = max(len(row.name) for row in self.rows)
        lines = [f"{'':{width}}  accuracy  95% interval"]
        for row in self.rows:
            low, high = wilson_interval(int(row.correct.sum()), len(row.correct))
            lines.append(f"{row.name:{width}}  {row.accuracy:7.1%}   {low:6.1%} to {high:6.1%}")
        lines.append(f"{self.num_examples} examples")
        table = "\n".join(lines)
        print(table)
        return table

    def save_json(self, directory: str | os.PathLike[str]) -> None:
        """Writes `report.json`."""
        folder = pathlib.Path(directory)
        folder.mkdir(parents=True, exist_ok=True)
        temporary = folder / "report.json.part"
        temporary.write_text(json.dumps(self.to_dict(), indent=2) + "\n")
        temporary.replace(folder / "report.json")

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Writes `report.json`, `accuracy.png` and, for images, `samples.png`.

        The samples are those of the attack with the lowest accuracy. The folder is made if need
        be. Matplotlib must be installed (the extra `plots`).
        """
        self.save_json(directory)
        folder = pathlib.Path(directory)
        plots.plot_rows({row.name: row.accuracy for row in self.rows}, folder / "accuracy.png")
        attacked = [row for row in self.rows if row.attack is not None]
        if attacked and plots.are_images(self.sample_images):
            strongest = min(attacked, key=lambda row: row.accuracy)
            plots.plot_samples(
                self.sample_images,
                *self.samples[strongest.name],
                folder / "samples.png",
                labels=self.sample_labels,
                title=strongest.name,
            )


def comparison_table(reports: Mapping[str, Report]) -> str:
    """A table of several models' reports with the same attacks, one column for each model.

    Args:
        reports: mapping of model names to reports.

    Returns:
        The table as text.

    Raises:
        ValueError: if the reports' rows are not the same.
    """
    names = {tuple(row.name for row in report.rows) for report in reports.values()}
    if len(names) != 1:
        raise ValueError(
            f"The reports must have the same rows. Received: {sorted(map(list, names))}"
        )
    width = max(len(name) for name in next(iter(names)))
    columns = {name: max(len(name), 8) for name in reports}
    lines = [" " * width + "".join(f"  {name:>{size}}" for name, size in columns.items())]
    for index, row_name in enumerate(next(iter(names))):
        cells = "".join(
            f"  {reports[name].rows[index].accuracy:>{size}.1%}" for name, size in columns.items()
        )
        lines.append(f"{row_name:{width}}{cells}")
    return "\n".join(lines)
