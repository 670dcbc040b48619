"""Plots of what happens inside models, as PNG files."""

import itertools
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from keras_robust.metrics.geometry import FeatureGeometry
from keras_robust.metrics.nearest import NearestImages
from keras_robust.metrics.transfer import TransferMatrix
from keras_robust.report.plots import _figure, _plain, are_images
from keras_robust.types import Labels

_MOST_LEGEND_ENTRIES = 20
_IMAGE_INCHES = 1.2


def plot_geometry(
    geometry: FeatureGeometry,
    path: str | os.PathLike[str],
    class_names: list[str] | None = None,
    title: str | None = None,
) -> None:
    """Draws the features of clean and attacked images side by side.

    Colours show the true classes. Crosses mark images that the model misclassifies.

    Args:
        geometry: `kr.evaluation.FeatureGeometry`, as `kr.evaluation.feature_geometry` returns it.
        path: PNG file to write.
        class_names: list of strings. Defaults to `None`: the numbers of the classes.
        title: string. Defaults to `None`.
    """
    figure = _figure(9.5, 4.4)
    figure.suptitle(_plain(title or ""))
    panels = figure.subplots(1, 2, sharex=True, sharey=True)
    labels = np.unique(geometry.labels)
    colors = _colors(len(labels))
    pairs = [
        ("clean", geometry.clean, geometry.clean_classes),
        ("attacked", geometry.attacked, geometry.attacked_classes),
    ]
    for axes, (name, points, classes) in zip(panels, pairs, strict=True):
        correct = classes == geometry.labels
        axes.set_title(f"{name} (accuracy {correct.mean():.1%})", fontsize=10)
        for label, color in zip(labels, colors, strict=True):
            of_class = geometry.labels == label
            for chosen, marker in ((of_class & correct, "o"), (of_class & ~correct, "x")):
                axes.scatter(
                    *points[chosen].T, s=12, color=color, marker=marker, linewidths=0.8, alpha=0.7
                )
            axes.scatter([], [], s=24, color=color, label=_name(label, class_names))
        if geometry.explained_variance is None:
            axes.set_xticks([])
            axes.set_yticks([])
        else:
            first, second = geometry.explained_variance
            axes.set_xlabel(f"first principal component ({first:.0%} of variance)")
            if axes is panels[0]:
                axes.set_ylabel(f"second principal component ({second:.0%})")
    for marker, meaning in (("o", "correct"), ("x", "misclassified")):
        panels[1].scatter([], [], s=24, color="black", marker=marker, label=meaning)
    if len(labels) <= _MOST_LEGEND_ENTRIES:
        figure.legend(
            *panels[1].get_legend_handles_labels(), loc="outside right center", fontsize=8
        )
    figure.savefig(path)


def plot_nearest_images(
    nearest: NearestImages,
    path: str | os.PathLike[str],
    labels: np.ndarray | None = None,
    class_names: list[str] | None = None,
    title: str | None = None,
) -> None:
    """Draws each image in a row with its nearest training images.

    The class that the model predicts is written above each image. Above each training image are its
    class and its distance. With `labels`, classes that differ from the image's true class are red.

    Args:
        nearest: `kr.evaluation.NearestImages`, as `kr.evaluation.nearest_images` returns it.
        path: PNG file to write.
        labels: int array, shape `(num_examples,)`, the true classes. Defaults to `None`.
        class_names: list of strings. Defaults to `None`: the numbers of the classes.
        title: string. Defaults to `None`.

    Raises:
        ValueError: if the images cannot be shown as gray or colour images.
    """
    if not are_images(nearest.queries):
        raise ValueError(
            "Argument `nearest` must hold images of shape `(height, width, 1 or 3)`. "
            f"Received: images of shape {nearest.queries.shape[1:]}"
        )
    rows, columns = nearest.labels.shape
    height = (_IMAGE_INCHES + 0.4) * rows + (0.4 if title else 0.1)
    figure = _figure(_IMAGE_INCHES * (columns + 1.15) + 0.6, height)
    figure.suptitle(_plain(title or ""))
    # A narrow empty column separates the images from their neighbours.
    all_axes = figure.subplots(
        rows, columns + 2, squeeze=False, width_ratios=[1, 0.15, *[1] * columns]
    )
    low = min(nearest.queries.min(), nearest.images.min())
    high = max(nearest.queries.max(), nearest.images.max())
    for row, axes in enumerate(all_axes):
        true = None if labels is None else labels[row]
        axes[1].axis("off")
        _show(axes[0], nearest.queries[row], low, high)
        heading = f"predicted {_name(nearest.classes[row], class_names)}"
        if true is not None:
            heading = f"{_name(true, class_names)},\n{heading}"
        _set_heading(axes[0], heading, true is not None and nearest.classes[row] != true)
        for column in range(columns):
            label = nearest.labels[row, column]
            _show(axes[column + 2], nearest.images[row, column], low, high)
            heading = f"{_name(label, class_names)}\n{nearest.distances[row, column]:#.3g}"
            _set_heading(axes[column + 2], heading, true is not None and label != true)
    figure.savefig(path)


def plot_perturbation_error(
    errors: Mapping[str, Mapping[str, float]],
    path: str | os.PathLike[str],
    title: str | None = None,
) -> None:
    """Draws the perturbation error of each layer, one line per model.

    Args:
        errors: mapping of names of models to perturbation errors, as
            `kr.evaluation.perturbation_error` returns them.
        path: PNG file to write.
        title: string. Defaults to `None`.
    """
    longest = max(errors.values(), key=len)
    figure = _figure(max(5.0, 0.45 * len(longest) + 1.5), 4.5)
    axes = figure.add_subplot()
    for (name, values), marker in zip(errors.items(), itertools.cycle("os^Dv<>pP*"), strict=False):
        axes.plot(
            range(1, len(values) + 1), list(values.values()), marker=marker, label=_plain(name)
        )
    axes.set_xticks(range(1, len(longest) + 1))
    if all(list(values) == list(longest) for values in errors.values()):
        axes.set_xticklabels(
            map(_plain, longest), rotation=60, ha="right", rotation_mode="anchor", fontsize=8
        )
    else:
        axes.set_xlabel("layer")
    axes.set_ylim(bottom=0)
    axes.set_ylabel("perturbation error")
    axes.set_title(_plain(title or ""))
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path)


def plot_transfer_matrix(
    matrix: TransferMatrix, path: str | os.PathLike[str], title: str | None = None
) -> None:
    """Draws a transfer matrix as a heat map, with the clean accuracies in the top row.

    Args:
        matrix: `kr.evaluation.TransferMatrix`, as `kr.evaluation.transfer_matrix` returns it.
        path: PNG file to write.
        title: string. Defaults to `None`.
    """
    targets = list(matrix.clean)
    rows = [matrix.clean, *(matrix.accuracy[source] for source in matrix.accuracy)]
    values = 100 * np.array([[row[target] for target in targets] for row in rows])
    longest = max(map(len, targets))
    figure = _figure(0.9 * len(targets) + 0.1 * longest + 2.6, 0.6 * len(rows) + 1.6)
    names = [_plain(target) for target in targets]
    sources = [f"made on {_plain(source)}" for source in matrix.accuracy]
    axes = figure.add_subplot()
    image = axes.imshow(values, vmin=0, vmax=100, cmap="viridis", aspect="auto")
    for row, column in np.ndindex(*values.shape):
        value = values[row, column]
        color = "black" if value > 60 else "white"
        axes.text(column, row, f"{value:.1f}", ha="center", va="center", color=color)
    axes.axhline(0.5, color="white", linewidth=3)
    axes.set_xticks(range(len(targets)), names, rotation=30, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(rows)), ["clean images", *sources])
    axes.set_xlabel("classified by")
    axes.set_title(_plain(title or ""))
    figure.colorbar(image, label="accuracy (%)")
    figure.savefig(path)


def _colors(count: int) -> np.ndarray:
    from matplotlib import colormaps

    if count > _MOST_LEGEND_ENTRIES:
        return colormaps["turbo"](np.linspace(0, 1, count))
    return colormaps["tab10" if count <= 10 else "tab20"](np.arange(count))


def _name(label: Labels, class_names: list[str] | None) -> str:
    return _plain(class_names[int(label)]) if class_names else str(int(label))


def _show(axes: Any, image: np.ndarray, low: float, high: float) -> None:
    scaled = (image.astype("float32") - low) / max(high - low, 1e-12)
    axes.imshow(scaled.squeeze(-1) if image.shape[-1] == 1 else scaled, cmap="gray", vmin=0, vmax=1)
    axes.set_xticks([])
    axes.set_yticks([])


def _set_heading(axes: Any, heading: str, wrong: bool) -> None:
    axes.set_title(heading, fontsize=8, color="tab:red" if wrong else "black")
