"""What is kept of each attacked batch, and a row of the report made of it."""

from collections.abc import Iterable

import numpy as np

from keras_robust.attacks.journal import Arrays
from keras_robust.report.row import Row
from keras_robust.report.samples import Samples

_NUM_SAMPLES = 8
_SHOWN = ("images", "x_adv", "labels", "shown_classes")


def file_name(number: int) -> str:
    """What the files of an attack's batches begin with, by its number."""
    return f"{number:02}"


def shortened(labels: np.ndarray, found: Arrays) -> Arrays:
    """What is kept of an attacked batch: of the images, only some that the report may show."""
    shown = np.flatnonzero(found["success"])[:_NUM_SAMPLES]
    return {
        **found,
        "images": found["images"][shown].astype("float32"),
        "x_adv": found["x_adv"][shown].astype("float32"),
        "labels": labels[found["examples"][shown]],
        "shown_classes": found["classes"][shown],
    }


def record(row: Row, batches: Iterable[Arrays]) -> Samples | None:
    """Notes in the row what was kept of each batch; returns the images that the report shows."""
    shown: list[list[np.ndarray]] = []
    for found in batches:
        row.record(found["examples"], found)
        if sum(len(parts[0]) for parts in shown) < _NUM_SAMPLES and len(found["labels"]):
            shown.append([found[name] for name in _SHOWN])
    if not shown:
        return None
    return Samples(*(np.concatenate(parts)[:_NUM_SAMPLES] for parts in zip(*shown, strict=True)))
