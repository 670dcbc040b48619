"""The data of a report."""

import dataclasses
import datetime
import platform
import sys
from typing import Any, NamedTuple

import keras
import numpy as np

from keras_robust import backend
from keras_robust.metrics.geometry import FeatureGeometry
from keras_robust.report.check_result import CheckResult
from keras_robust.report.class_accuracy import ClassAccuracy, by_class
from keras_robust.report.row import CERTIFIED, WORST_CASE, Row

# Version of the format that `to_dict` returns. It changes when older versions would misread it.
SCHEMA = 1
# Horizontal axis of the curves of attacks and a certificate.
BOUNDS = "L2 radius"
# Keys of the notes that the report itself adds.
MASK = "mask"
CERTIFICATE = "certificate"


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(" ", "seconds")


def _environment() -> dict[str, str]:
    versions = {
        name: sys.modules[name].__version__
        for name in ("keras_robust", "keras", keras.backend.backend(), "numpy")
    }
    return {
        "backend": keras.backend.backend(),
        "device": backend.device(),
        **versions,
        "python": platform.python_version(),
    }


class Samples(NamedTuple):
    """Some of the images on which an attack succeeded.

    Args:
        images: float array, the original images.
        perturbed: float array, the perturbed images, of the same shape.
        labels: int array, the true classes.
        classes: int array, the classes predicted for `perturbed`.
    """

    images: np.ndarray
    perturbed: np.ndarray
    labels: np.ndarray
    classes: np.ndarray


@dataclasses.dataclass
class ReportData:
    """The data of an evaluation. `kr.evaluation.Report` documents the fields."""

    num_examples: int
    batch_size: int
    seed: int
    worst_case_only: bool
    rows: list[Row] = dataclasses.field(default_factory=list)
    samples: dict[str, Samples] = dataclasses.field(default_factory=dict)
    checks: list[CheckResult] | None = None
    curves: dict[str, dict[str, dict[float, float]]] = dataclasses.field(default_factory=dict)
    geometry: FeatureGeometry | None = None
    notes: dict[str, str] = dataclasses.field(default_factory=dict)
    date: str = dataclasses.field(default_factory=_now)
    environment: dict[str, str] = dataclasses.field(default_factory=_environment)
    labels: np.ndarray | None = None
    class_names: list[str] = dataclasses.field(default_factory=list)
    saved_classes: list[ClassAccuracy] = dataclasses.field(default_factory=list)

    def add(self, row: Row, samples: Samples | None = None) -> None:
        """Adds a row and, if given, samples of images that were fooled."""
        self.rows.append(row)
        if samples is not None:
            self.samples[row.name] = samples

    def row(self, name: str) -> Row:
        """Returns the row of an attack, `"clean"` or `"worst case"`."""
        for row in self.rows:
            if row.name == name:
                return row
        raise ValueError(
            f"Argument `name` must be one of {[row.name for row in self.rows]}. "
            f"Received: name={name!r}"
        )

    def accuracy(self, name: str) -> float:
        """Returns the accuracy in a row, from 0 to 1."""
        return self.row(name).accuracy

    @property
    def per_class(self) -> list[ClassAccuracy]:
        """The accuracies of each class, in order.

        Empty for reports that were saved by versions without accuracies per class.
        """
        if self.labels is None:
            return self.saved_classes
        return by_class(self.labels, self.class_names, self.rows)

    @property
    def worst_class(self) -> ClassAccuracy | None:
        """The class with the lowest worst-case accuracy. The first one, if there are several.

        `None` if it is unknown, because the evaluation is not finished or `per_class` is empty.
        """
        return next(iter(self._worst_classes), None)

    @property
    def _worst_classes(self) -> list[ClassAccuracy]:
        classes = self.per_class
        lowest = min((v for one in classes if (v := one.worst_case) is not None), default=None)
        return [one for one in classes if lowest is not None and one.worst_case == lowest]

    @property
    def complete(self) -> bool:
        """Whether all attacks have been run."""
        return any(row.name == WORST_CASE for row in self.rows)

    @property
    def failed_checks(self) -> list[CheckResult]:
        """The checks that have failed."""
        return [check for check in self.checks or () if check.status == "FAILED"]

    @property
    def verdict(self) -> str:
        """The outcome of the checks, in a sentence."""
        if self.checks is None:
            return "The checks were not run."
        failed, not_run = len(self.failed_checks), sum(c.passed is None for c in self.checks)
        skipped = f" {not_run} could not be run." if not_run else ""
        if failed:
            return (
                f"{failed} of {len(self.checks)} CHECKS FAILED: do not trust the robust accuracy. "
                f"It is probably overestimated.{skipped}"
            )
        return f"{len(self.checks) - not_run} checks passed, none failed.{skipped}"

    @property
    def statement(self) -> str:
        """The meaning of the accuracies, in a sentence."""
        if not self.complete:
            return "The evaluation is not finished: some attacks have not been run."
        worst = self.row(WORST_CASE)
        low, high = worst.interval
        share = f"{worst.accuracy:.1%} (95% interval {low:.1%} to {high:.1%})"
        if not worst.radii:
            return (
                f"No attack had a radius, so the accuracy under all attacks, {share}, says little. "
                f"Look at the norms of the perturbations.{self._masked}"
            )
        left_out = [row.name for row in self.rows if row.attack is not None and not row.radii]
        return (
            f"Upper bound on the robust accuracy within {worst.radius}: {share}, on "
            f"{self.num_examples} examples. A stronger attack may lower it."
            + f" Attacks without a radius are left out: {', '.join(left_out)}." * bool(left_out)
            + self._masked
            + self._certified
        )

    @property
    def _masked(self) -> str:
        """The sentence on the mask. Empty without a mask."""
        return f" Mask: {self.notes[MASK]}." if MASK in self.notes else ""

    @property
    def _certified(self) -> str:
        """The sentence on the certificate. Empty without a certificate."""
        if not any(row.name == CERTIFIED for row in self.rows):
            return ""
        return (
            f" Certified lower bound: {self.accuracy(CERTIFIED):.1%}. The robust accuracy lies "
            "between the two bounds."
        )

    @property
    def class_statement(self) -> str:
        """The class that attacks fool most, in a sentence. Empty if it is unknown."""
        worst = self.worst_class
        if worst is None or worst.interval is None:
            return ""
        low, high = worst.interval
        num_others = len(self._worst_classes) - 1
        num_unknown = sum(not one.num_examples for one in self.per_class)
        return (
            f"Worst class: {worst.name}, with {worst.worst_case:.1%} worst-case accuracy "
            f"(95% interval {low:.1%} to {high:.1%}) on {worst.num_examples} examples."
            + f" Equally low: {num_others} more." * bool(num_others)
            + f" Classes without examples: {num_unknown}." * bool(num_unknown)
        )

    def to_dict(self) -> dict[str, Any]:
        """Returns everything but the images, ready for JSON."""
        return {
            "schema": SCHEMA,
            "statement": self.statement,
            "verdict": self.verdict,
            "num_examples": self.num_examples,
            "batch_size": self.batch_size,
            "seed": self.seed,
            "worst_case_only": self.worst_case_only,
            "complete": self.complete,
            "date": self.date,
            **self.environment,
            "notes": self.notes,
            "rows": [row.to_dict() for row in self.rows],
            "per_class": [dataclasses.asdict(one) for one in self.per_class],
            "worst_class": None
            if self.worst_class is None
            else dataclasses.asdict(self.worst_class),
            "class_statement": self.class_statement,
            "checks": None if self.checks is None else [c.to_dict() for c in self.checks],
            "curves": {
                axis: {name: [list(point) for point in curve.items()] for name, curve in c.items()}
                for axis, c in self.curves.items()
            },
        }
