"""What an evaluation has found."""

import dataclasses
import json
import os
import pathlib

from keras_robust.report import html, plots
from keras_robust.report.data import ReportData
from keras_robust.report.feature_plots import plot_geometry
from keras_robust.report.text import text_summary

_JSON, _PAGE = "report.json", "report.html"


@dataclasses.dataclass
class Report(ReportData):
    """A classifier's accuracy, clean and under attacks; made by `kr.evaluate`.

    Args:
        num_examples: int.
        batch_size: int.
        seed: int.
        worst_case_only: bool, whether each attack had only what those before it left.
        rows: list of `Row`, the last one for the worst case. Defaults to an empty list.
        samples: mapping of row names to the first `Samples` that were fooled. Defaults to an
            empty mapping.
        checks: list of `CheckResult`. Defaults to `None`: they were not run.
        curves: mapping of what is on the horizontal axis (`"epsilon"`, `"steps"`) to curves by
            name, as `kr.evaluation.robustness_curve` returns them. Defaults to an empty mapping.
        geometry: `kr.evaluation.FeatureGeometry`, features of clean and attacked images. Defaults
            to `None`.
        notes: mapping of strings to strings, what else is to be known about the model, the data
            and how the report was made. Defaults to an empty mapping.
        date: string, when it was made. Defaults to now, UTC.
    """

    def summary(self) -> str:
        """Prints the failed checks, the table and what it means; returns it too."""
        text = text_summary(self)
        print(text)
        return text

    def save_json(self, directory: str | os.PathLike[str]) -> None:
        """Writes `report.json`."""
        folder = pathlib.Path(directory)
        folder.mkdir(parents=True, exist_ok=True)
        _write(folder / _JSON, json.dumps(self.to_dict(), indent=2) + "\n")

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Writes `report.html`, `report.json` and the pictures in them as PNG files.

        The page holds all there is to show, and needs no network. The samples are those of the
        attack with the lowest accuracy, among those with a radius if there are any. The folder
        is made if need be. Matplotlib must be installed (the extra `plots`).
        """
        self.save_json(directory)
        folder = pathlib.Path(directory)
        pictures = {"accuracy": folder / "accuracy.png"}
        plots.plot_rows({row.name: row.accuracy for row in self.rows}, pictures["accuracy"])
        for axis, curves in self.curves.items():
            path = pictures[f"Accuracy over {axis}"] = folder / f"curves_{axis}.png"
            plots.plot_curves(curves, path, xlabel=axis)
        attacked = [row for row in self.rows if row.name in self.samples]
        limited = [row for row in attacked if row.radii]
        if attacked:
            strongest = min(limited or attacked, key=lambda row: row.accuracy).name
            images, perturbed, labels, classes = self.samples[strongest]
            if plots.are_images(images):
                path = pictures["samples"] = folder / "samples.png"
                plots.plot_samples(images, perturbed, classes, path, labels=labels, title=strongest)
        if self.geometry is not None:
            path = pictures["geometry"] = folder / "geometry.png"
            plot_geometry(self.geometry, path)
        pngs = {name: path.read_bytes() for name, path in pictures.items()}
        _write(folder / _PAGE, html.page(self, pngs))

    @staticmethod
    def delete(directory: str | os.PathLike[str]) -> None:
        """Deletes what would say the same of an earlier evaluation: the page and the JSON."""
        for name in (_JSON, _PAGE):
            (pathlib.Path(directory) / name).unlink(missing_ok=True)


def _write(path: pathlib.Path, text: str) -> None:
    """Writes a file that is whole or not there."""
    temporary = path.with_name(f"{path.name}.part")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)
