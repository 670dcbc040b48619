"""Reading and writing of a report's files."""

import dataclasses
import io
import json
import pathlib
import zipfile
from typing import Any, cast

import numpy as np

from keras_robust.metrics.geometry import FeatureGeometry
from keras_robust.report.check_result import CheckResult
from keras_robust.report.class_accuracy import ClassAccuracy, by_class
from keras_robust.report.data import SCHEMA, ReportData, Samples
from keras_robust.report.row import Row
from keras_robust.report.saved_row import SavedRow
from keras_robust.whole_file import write_whole

JSON, ARRAYS = "report.json", "report.npz"
# Keys that `ReportData.to_dict` adds to the fields.
_DERIVED = (
    "schema",
    "statement",
    "verdict",
    "complete",
    "per_class",
    "worst_class",
    "class_statement",
)


def write(report: ReportData, folder: pathlib.Path) -> None:
    """Writes the figures as JSON, and the arrays from which they are computed."""
    folder.mkdir(parents=True, exist_ok=True)
    arrays = _arrays(report)
    if arrays:
        write_whole(
            folder / ARRAYS,
            lambda file: np.savez_compressed(file, **arrays),  # type: ignore[arg-type]
        )
    else:
        (folder / ARRAYS).unlink(missing_ok=True)
    text = json.dumps(report.to_dict(), indent=2) + "\n"
    write_whole(folder / JSON, lambda file: file.write(text.encode()))


def read(folder: pathlib.Path) -> dict[str, Any]:
    """Reads the fields of the report in a folder.

    Raises:
        ValueError: if there is no report, if its files are damaged or do not belong together, or if
            a newer version has written them.
    """
    path = folder / JSON
    if not path.is_file():
        raise ValueError(
            f"Argument `directory` must be a folder that holds {JSON}, as `kr.evaluate` writes it "
            f"to its `output`. Received: directory={str(folder)!r}"
        )
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{str(path)!r} is damaged: it is not valid JSON. {error}") from error
    schema = saved.get("schema", 0) if isinstance(saved, dict) else None
    if not isinstance(schema, int):
        raise ValueError(f"{str(path)!r} is not a keras_robust report.")
    if schema > SCHEMA:
        raise ValueError(
            f"{str(path)!r} was written by a newer version of keras_robust, "
            f"{saved.get('keras_robust', 'unknown')}: its schema is {schema}, and this version "
            f"reads schemas up to {SCHEMA}. Update keras_robust to load it."
        )
    try:
        return _fields(saved, folder / ARRAYS)
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(
            f"{str(path)!r} is not a complete keras_robust report. {type(error).__name__}: {error}"
        ) from error


def _fields(saved: dict[str, Any], path: pathlib.Path) -> dict[str, Any]:
    fields = {field.name for field in dataclasses.fields(ReportData)}
    found = {name: value for name, value in saved.items() if name in fields}
    found["environment"] = {
        name: value for name, value in saved.items() if name not in (*fields, *_DERIVED)
    }
    checks = saved["checks"]
    found["checks"] = None if checks is None else [_check(check) for check in checks]
    found["curves"] = {
        axis: {name: dict(map(tuple, curve)) for name, curve in curves.items()}
        for axis, curves in saved["curves"].items()
    }
    classes = saved.get("per_class", [])
    found["saved_classes"] = [ClassAccuracy(**one) for one in classes]
    # A `SavedRow` stands in for a `Row` wherever the report is shown.
    found["rows"] = cast(list[Row], [SavedRow(row) for row in saved["rows"]])
    return found | (_read_arrays(path, saved["rows"], classes) if path.exists() else {})


def _check(saved: dict[str, Any]) -> CheckResult:
    figures = {n: np.nan if value is None else value for n, value in saved["figures"].items()}
    return CheckResult(saved["name"], saved["passed"], saved["sentence"], figures)


def _arrays(report: ReportData) -> dict[str, np.ndarray]:
    """Returns the arrays behind the figures and plots; none if they are unknown."""
    arrays: dict[str, np.ndarray] = {}
    for number, row in enumerate(report.rows):
        if isinstance(row, SavedRow):
            return {}
        arrays[f"{number}/correct"] = row.correct
        arrays[f"{number}/without_gradient"] = np.array(row.without_gradient, str)
        if row.attacked is not None:
            arrays[f"{number}/attacked"] = row.attacked
        arrays |= {f"{number}/measures/{name}": v for name, v in row.measures.items()}
        if row.name in report.samples:
            samples = report.samples[row.name]._asdict()
            arrays |= {f"{number}/samples/{name}": value for name, value in samples.items()}
    if report.geometry is not None:
        fields = vars(report.geometry)
        arrays |= {f"geometry/{n}": np.asarray(v) for n, v in fields.items() if v is not None}
    if report.labels is not None:
        arrays["labels"] = report.labels
    return arrays


def _read_arrays(
    path: pathlib.Path, saved_rows: list[dict[str, Any]], saved_classes: list[dict[str, Any]]
) -> dict[str, Any]:
    """Reads the rows, samples, geometry and labels that `_arrays` has saved."""
    try:
        with np.load(io.BytesIO(path.read_bytes())) as file:
            arrays = dict(file)
    except (OSError, EOFError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"{str(path)!r} is damaged: {error}. Without this file, only the figures are loaded."
        ) from error

    def with_prefix(prefix: str) -> dict[str, np.ndarray]:
        parts = {name: v for name, v in arrays.items() if name.startswith(prefix)}
        return {name.removeprefix(prefix): value for name, value in parts.items()}

    rows, samples = [], {}
    for number, saved in enumerate(saved_rows):
        found = with_prefix(f"{number}/")
        if "correct" not in found:
            break
        rows.append(
            Row(
                saved["name"],
                found["correct"],
                saved["attack"],
                dict(saved["radii"]),
                found.get("attacked"),
                with_prefix(f"{number}/measures/"),
                found["without_gradient"].tolist(),
            )
        )
        if images := with_prefix(f"{number}/samples/"):
            samples[saved["name"]] = Samples(**images)
    labels, names = arrays.get("labels"), [one["name"] for one in saved_classes]
    classes = [] if labels is None else by_class(labels, names, rows)
    figures = [row.to_dict() for row in rows], [dataclasses.asdict(one) for one in classes]
    if json.dumps(figures) != json.dumps([saved_rows, saved_classes]):
        raise ValueError(
            f"{str(path)!r} does not belong to the {JSON} beside it: their figures differ. "
            f"Without {ARRAYS}, only the figures are loaded."
        )
    geometry: dict[str, Any] = with_prefix("geometry/")
    if geometry:
        geometry["method"] = geometry["method"].item()
        geometry.setdefault("explained_variance", None)
    return {
        "rows": rows,
        "samples": samples,
        "labels": labels,
        "class_names": names,
        "geometry": FeatureGeometry(**geometry) if geometry else None,
    }
