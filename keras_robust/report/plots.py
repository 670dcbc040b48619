"""Plots of robustness, as PNG files."""

import importlib.util
import itertools
import os
import textwrap
from collections.abc import Mapping
from typing import Any

import numpy as np

_COLUMN_INCHES = 1.2


def require_matplotlib() -> None:
    """Raises an `ImportError` that tells how to install Matplotlib, if it is missing."""
    if importlib.util.find_spec("matplotlib") is None:
        raise ImportError(
            "Pictures need Matplotlib. Install it with the extra `plots`: "
            "`pip install 'keras-robust[plots]'`."
        )


def _figure(width: float, height: float) -> Any:
    require_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _plain(text: str) -> str:
    """Escapes text, so that Matplotlib reads no formulas in it."""
    return text.replace("$", r"\$")


def plot_rows(accuracies: Mapping[str, float], path: str | os.PathLike[str]) -> None:
    """Draws accuracies as horizontal bars.

    Args:
        accuracies: mapping of names to accuracies from 0 to 1.
        path: PNG file to write.
    """
    names = [_plain(textwrap.fill(name, 32)) for name in accuracies]
    figure = _figure(6, 0.2 * sum(2 + name.count("\n") for name in names) + 0.8)
    axes = figure.add_subplot()
    bars = axes.barh(names, [100 * value for value in accuracies.values()])
    axes.bar_label(bars, fmt="%.1f", padding=3)
    axes.invert_yaxis()
    axes.set_xlim(0, 108)
    axes.set_xlabel("accuracy (%)")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)


def plot_curves(
    curves: Mapping[str, Mapping[float, float]],
    path: str | os.PathLike[str],
    chance: float | None = None,
    training_epsilon: float | None = None,
    title: str | None = None,
    xlabel: str = "epsilon, in units of the image",
) -> None:
    """Draws accuracy against epsilon (or another number), one line per model.

    Args:
        curves: mapping of names to curves, as `kr.evaluation.robustness_curve` returns them.
        path: PNG file to write.
        chance: float. Accuracy of random guessing, drawn as a dotted line. Defaults to `None`.
        training_epsilon: float. Drawn as a dashed vertical line. Defaults to `None`.
        title: string. Defaults to `None`.
        xlabel: string. Defaults to `"epsilon, in units of the image"`.
    """
    figure = _figure(6, 4)
    axes = figure.add_subplot()
    for (name, curve), marker in zip(curves.items(), itertools.cycle("os^Dv<>pP*"), strict=False):
        accuracies = [100 * value for value in curve.values()]
        axes.plot(list(curve), accuracies, marker=marker, label=_plain(name))
    if chance is not None:
        axes.axhline(100 * chance, color="gray", linestyle=":", label="chance")
    if training_epsilon is not None:
        label = f"training epsilon, {training_epsilon:g}"
        axes.axvline(training_epsilon, color="gray", linestyle="--", label=label)
    axes.set_ylim(-2, 102)
    axes.set_xlabel(xlabel)
    axes.set_ylabel("accuracy (%)")
    axes.set_title(_plain(title or ""))
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path)


def plot_bounds(
    curves: Mapping[str, Mapping[float, float]], path: str | os.PathLike[str], xlabel: str
) -> None:
    """Draws an upper and a lower bound of the accuracy, and shades the gap between them.

    Between two radii, the upper bound is that of the smaller radius, and the lower bound that of
    the larger.

    Args:
        curves: mapping of names to two curves with the same radii, the upper bound first.
        path: PNG file to write.
        xlabel: string.
    """
    figure = _figure(6, 4)
    axes = figure.add_subplot()
    (upper_name, upper), (lower_name, lower) = curves.items()
    radii = list(upper)
    high, low = ([100 * curve[radius] for radius in radii] for curve in (upper, lower))
    # Both bounds, at both ends of each interval between two radii.
    xs, tops, bottoms = np.repeat(radii, 2)[1:-1], np.repeat(high[:-1], 2), np.repeat(low[1:], 2)
    gap = "between the bounds"
    axes.fill_between(xs, bottoms, tops, where=tops > bottoms, alpha=0.15, color="gray",
                      linewidth=0, label=gap)  # fmt: skip
    axes.step(radii, high, where="post", color="tab:red", label=_plain(upper_name))
    axes.step(radii, low, where="pre", color="tab:blue", label=_plain(lower_name))
    axes.set_ylim(-2, 102)
    axes.set_xlim(left=0)
    axes.set_xlabel(f"{xlabel}, in units of the image")
    axes.set_ylabel("accuracy (%)")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path)


def are_images(x: np.ndarray) -> bool:
    """Returns whether an array can be shown as gray or colour images."""
    return x.ndim == 4 and x.shape[-1] in (1, 3)


def plot_samples(
    images: np.ndarray,
    perturbed: np.ndarray,
    classes: np.ndarray,
    path: str | os.PathLike[str],
    labels: np.ndarray | None = None,
    class_names: list[str] | None = None,
    title: str | None = None,
) -> None:
    """Draws clean images, perturbed images and their differences in three rows.

    The range of all images is shown from black to white. A difference of 0 is gray, and the largest
    difference of all images is black or white.

    Args:
        images: float array, shape `(n, height, width, 1 or 3)`.
        perturbed: float array, the same images after an attack.
        classes: int array, the classes predicted for the perturbed images.
        path: PNG file to write.
        labels: int array, the true classes. Defaults to `None`.
        class_names: list of strings. Defaults to `None`: the numbers of the classes.
        title: string. Defaults to `None`.

    Raises:
        ValueError: if `images` cannot be shown, or `perturbed` has another shape.
    """
    if not are_images(images) or images.shape != perturbed.shape:
        raise ValueError(
            "Arguments `images` and `perturbed` must both have shape "
            "`(n, height, width, 1 or 3)`. Received: "
            f"images.shape={images.shape}, perturbed.shape={perturbed.shape}"
        )

    def name(label: int) -> str:
        return _plain(class_names[label]) if class_names else str(label)

    images, perturbed = images.astype("float32"), perturbed.astype("float32")
    low, high = min(images.min(), perturbed.min()), max(images.max(), perturbed.max())
    difference = perturbed - images
    largest = max(float(np.abs(difference).max()), 1e-30)
    sheets = {
        "clean": (images - low) / max(high - low, 1e-12),
        "perturbed": (perturbed - low) / max(high - low, 1e-12),
        f"difference\n(±{largest:.3g})": difference / (2 * largest) + 0.5,
    }
    figure = _figure(_COLUMN_INCHES * len(images) + 0.8, 3 * _COLUMN_INCHES + 1.1)
    figure.suptitle(_plain(title or ""))
    all_axes = figure.subplots(3, len(images), squeeze=False)
    for row, (sheet_name, sheet) in zip(all_axes, sheets.items(), strict=True):
        row[0].set_ylabel(sheet_name)
        for axes, image in zip(row, sheet, strict=True):
            axes.imshow(
                image.squeeze(-1) if image.shape[-1] == 1 else image, cmap="gray", vmin=0, vmax=1
            )
            axes.set_xticks([])
            axes.set_yticks([])
    for index, predicted in enumerate(classes):
        wrong = labels is not None and predicted != labels[index]
        all_axes[1, index].set_title(
            name(int(predicted)),
            fontsize=8,
            color="tab:red" if wrong else "black",
            fontweight="bold" if wrong else "normal",
        )
        if labels is not None:
            all_axes[0, index].set_title(name(int(labels[index])), fontsize=8)
    figure.savefig(path)
