"""Draws sheets of images."""

import pathlib

import numpy as np


def draw_images(rows: dict[str, np.ndarray], path: pathlib.Path) -> None:
    """Draws each row of images, with its name at the left. Values are in [0, 1]."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    count = max(len(images) for images in rows.values())
    figure = Figure(figsize=(1.3 * count + 1.6, 1.3 * len(rows)), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(rows), count, squeeze=False)
    for line, (name, images) in zip(axes, rows.items(), strict=True):
        for axis in line:
            axis.set_axis_off()
        line[0].text(-0.1, 0.5, name, ha="right", va="center", transform=line[0].transAxes)
        for axis, image in zip(line, images, strict=False):
            shown = np.clip(image, 0, 1)
            axis.imshow(shown.squeeze(), cmap="gray", vmin=0, vmax=1)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
