"""The report of an evaluation."""

import dataclasses
import os
import pathlib

from keras_robust.report import files, html, plots
from keras_robust.report.data import BOUNDS, ReportData
from keras_robust.report.feature_plots import plot_geometry
from keras_robust.report.text import text_summary
from keras_robust.whole_file import write_whole

_PAGE = "report.html"


@dataclasses.dataclass
class Report(ReportData):
    """The clean accuracy of a classifier and its accuracies under attack.

    `kr.evaluate` returns it.

    Args:
        num_examples: int.
        batch_size: int.
        seed: int.
        worst_case_only: bool, whether each attack was run only on the examples that no earlier
            attack had fooled.
        rows: list of `Row`. The last one is the worst case. The row of the certificate, if there is
            one, comes before it. Defaults to an empty list.
        samples: mapping of row names to `Samples`, the first images that were fooled. Defaults to
            an empty mapping.
        checks: list of `CheckResult`. Defaults to `None`: the checks were not run.
        curves: mapping of the quantity on the horizontal axis (`"epsilon"`, `"steps"`, with a
            certificate `"L2 radius"`) to curves by name, as `kr.evaluation.robustness_curve`
            returns them. Defaults to an empty mapping.
        geometry: `kr.evaluation.FeatureGeometry`, features of clean and attacked images. Defaults
            to `None`.
        notes: mapping of strings to strings, more information on the model, the data and how the
            report was made. Defaults to an empty mapping.
        date: string, when the report was made. Defaults to now, in UTC.
        environment: mapping of strings to strings: the backend, the device and the versions with
            which the figures were computed. Defaults to those of this process.
        labels: int array, shape `(num_examples,)`, the true class of each example. Defaults to
            `None`: there are no accuracies per class.
        class_names: list of strings, the names of all classes. Defaults to an empty list.
        saved_classes: list of `ClassAccuracy`, the value of `per_class` for a saved report that was
            loaded without its `report.npz`. Defaults to an empty list.
    """

    def summary(self, per_class: bool = False) -> str:
        """Prints a text summary of the report, and returns it.

        It holds the failed checks, the table of accuracies and what they mean.

        Args:
            per_class: bool. Whether to add a table of the accuracies of each class. Defaults to
                `False`: only the worst class is named.

        Returns:
            The summary as a string.
        """
        text = text_summary(self, per_class)
        print(text)
        return text

    def save_json(self, directory: str | os.PathLike[str]) -> None:
        """Writes `report.json`, and `report.npz` with the arrays behind its figures.

        Args:
            directory: folder to write to. It is created if it does not exist.
        """
        files.write(self, pathlib.Path(directory))

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Writes `report.html`, `report.json`, `report.npz` and the plots as PNG files.

        The page is self-contained and needs no network. The samples are those of the attack with
        the lowest accuracy. Attacks without a radius are considered only if no attack has one.
        Matplotlib must be installed (the extra `plots`).

        Args:
            directory: folder to write to. It is created if it does not exist.
        """
        self.save_json(directory)
        folder = pathlib.Path(directory)
        pictures = {"accuracy": folder / "accuracy.png"}
        plots.plot_rows({row.name: row.accuracy for row in self.rows}, pictures["accuracy"])
        for axis, curves in self.curves.items():
            name = f"curves_{axis.replace(' ', '_')}.png"
            path = pictures[f"Accuracy over {axis}"] = folder / name
            draw = plots.plot_bounds if axis == BOUNDS else plots.plot_curves
            draw(curves, path, xlabel=axis)
        attacked = [row for row in self.rows if row.name in self.samples]
        limited = [row for row in attacked if row.radii]
        if attacked:
            strongest = min(limited or attacked, key=lambda row: row.accuracy).name
            images, perturbed, labels, classes = self.samples[strongest]
            if plots.are_images(images):
                path = pictures["samples"] = folder / "samples.png"
                plots.plot_samples(
                    images,
                    perturbed,
                    classes,
                    path,
                    labels=labels,
                    class_names=self.class_names or None,
                    title=strongest,
                )
        if self.geometry is not None:
            path = pictures["geometry"] = folder / "geometry.png"
            plot_geometry(self.geometry, path)
        pngs = {name: path.read_bytes() for name, path in pictures.items()}
        page = html.page(self, pngs).encode()
        write_whole(folder / _PAGE, lambda file: file.write(page))

    @staticmethod
    def load(directory: str | os.PathLike[str]) -> "Report":
        """Loads a report that `save` has written, or `kr.evaluate` to its `output`.

        The loaded report shows the same as the saved one. The evaluation need not be finished.

        Args:
            directory: folder of the report.

        Returns:
            `kr.evaluation.Report`.

        Raises:
            ValueError: if the folder holds no `report.json`, if a newer version of keras_robust has
                written it, or if the files are damaged or do not belong together.

        Example:

        >>> import keras, numpy as np, tempfile, keras_robust as kr
        >>> model = keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(10)])
        >>> x, y = np.random.rand(32, 8, 8, 1), np.random.randint(0, 10, 32)
        >>> folder = tempfile.mkdtemp()
        >>> report = kr.evaluate(model, x, y, kr.attacks.FGSM(epsilon=1.0), output=folder,
        ...                      checks=False, verbose=0)
        >>> kr.evaluation.Report.load(folder).accuracy("worst case")
        0.0

        If `report.npz` is missing, as it is for reports of earlier versions, only the figures are
        loaded. The images, the geometry and the results for each example are then missing.
        """
        return Report(**files.read(pathlib.Path(directory)))

    @staticmethod
    def delete(directory: str | os.PathLike[str]) -> None:
        """Deletes the page, the figures and the arrays of an earlier report in a folder."""
        for name in (files.JSON, files.ARRAYS, _PAGE):
            (pathlib.Path(directory) / name).unlink(missing_ok=True)
