"""The figures of a report."""

import dataclasses
import datetime
import platform
import sys
from typing import Any

import keras
import numpy as np

from keras_robust import backend
from keras_robust.metrics.geometry import FeatureGeometry
from keras_robust.report.check_result import CheckResult
from keras_robust.report.class_accuracy import ClassAccuracy, by_class
from keras_robust.report.row import CERTIFIED, WORST_CASE, Row
from keras_robust.report.samples import Samples

# The form of what `to_dict` returns; a new number for what older versions would read wrongly.
SCHEMA = 1
# The axis of the curves that attacks and a certificate draw.
BOUNDS = "L2 radius"
# The keys of the report's own notes.
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


@dataclasses.dataclass
class ReportData:
    """The figures of an evaluation; the fields are those of `kr.evaluation.Report`."""

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
        """Adds a row and, where there are any, images that were fooled."""
        self.rows.append(row)
        if samples is not None:
            self.samples[row.name] = samples

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

    @property
    def per_class(self) -> list[ClassAccuracy]:
        """The accuracies of each class, in order; empty in reports of versions that had none."""
        if self.labels is None:
            return self.saved_classes
        return by_class(self.labels, self.class_names, self.rows)

    @property
    def worst_class(self) -> ClassAccuracy | None:
        """The class with the lowest accuracy in the worst case, the first of several.

        `None` where that is not known: the evaluation was not finished, or `per_class` is empty.
        """
        return next(iter(self._worst_classes), None)

    @property
    def _worst_classes(self) -> list[ClassAccuracy]:
        classes = self.per_class
        lowest = min((v for one in classes if (v := one.worst_case) is not None), default=None)
        return [one for one in classes if lowest is not None and one.worst_case == lowest]

    @property
    def complete(self) -> bool:
        """Whether every attack has been run."""
        return any(row.name == WORST_CASE for row in self.rows)

    @property
    def failed_checks(self) -> list[CheckResult]:
        """The checks that have failed."""
        return [check for check in self.checks or () if check.status == "FAILED"]

    @property
    def verdict(self) -> str:
        """What the checks say about the figures, in a sentence."""
        if self.checks is None:
            return "The checks of the figures' validity were not run."
        failed, not_run = len(self.failed_checks), sum(c.passed is None for c in self.checks)
        skipped = f" {not_run} could not be run." if not_run else ""
        if failed:
            return (
                f"{failed} of {len(self.checks)} CHECKS FAILED: do not trust the robust accuracy, "
                f"which is probably lower than it looks here.{skipped}"
            )
        return f"{len(self.checks) - not_run} checks passed, none failed.{skipped}"

    @property
    def statement(self) -> str:
        """What the figures mean, in a sentence."""
        if not self.complete:
            return "The evaluation was not finished: attacks are missing here."
        worst = self.row(WORST_CASE)
        low, high = worst.interval
        share = f"{worst.accuracy:.1%} (95% interval {low:.1%} to {high:.1%})"
        if not worst.radii:
            return (
                f"No attack had a radius to keep to, and {share} withstood them all: look at the "
                f"norms of the perturbations.{self._masked}"
            )
        left_out = [row.name for row in self.rows if row.attack is not None and not row.radii]
        return (
            f"Upper bound on the robust accuracy within {worst.radius}: {share}, on "
            f"{self.num_examples} examples. A stronger attack may find it lower."
            + (f" Without a radius, and left out of it: {', '.join(left_out)}." * bool(left_out))
            + self._masked
            + self._certified
        )

    @property
    def _masked(self) -> str:
        """The sentence on the mask; empty if there is none."""
        return f" Mask: {self.notes[MASK]}." if MASK in self.notes else ""

    @property
    def _certified(self) -> str:
        """The sentence on the certificate; empty if there is none."""
        if not any(row.name == CERTIFIED for row in self.rows):
            return ""
        return (
            f" Lower bound, certified: {self.accuracy(CERTIFIED):.1%}. What lies between the two "
            "is what nobody knows."
        )

    @property
    def class_statement(self) -> str:
        """Which class the attacks fool most, in a sentence; empty where that is not known."""
        worst = self.worst_class
        if worst is None or worst.interval is None:
            return ""
        low, high = worst.interval
        num_others = len(self._worst_classes) - 1
        num_unknown = sum(not one.num_examples for one in self.per_class)
        return (
            f"Worst class: {worst.name}, with {worst.worst_case:.1%} (95% interval {low:.1%} to "
            f"{high:.1%}) of {worst.num_examples} examples in the worst case."
            + f" Equally low: {num_others} more." * bool(num_others)
            + f" Classes without examples: {num_unknown}." * bool(num_unknown)
        )

    def to_dict(self) -> dict[str, Any]:
        """Everything but the images, ready for JSON."""
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
