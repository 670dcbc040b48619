"""Selects the arrays to save from each attacked batch, and fills a report row from them."""

from collections.abc import Iterable

import numpy as np

from keras_robust.attacks.journal import Arrays
from keras_robust.report.data import Samples
from keras_robust.report.row import Row

_NUM_SAMPLES = 8
_SHOWN = ("images", "x_adv", "labels", "shown_classes")


def file_name(number: int) -> str:
    """Returns the prefix of the file names of an attack's batches, by the attack's number."""
    return f"{number:02}"


def arrays_to_save(labels: np.ndarray, found: Arrays) -> Arrays:
    """Returns the arrays of an attacked batch, with only the few images that a report may show."""
    shown = np.flatnonzero(found["success"])[:_NUM_SAMPLES]
    return {
        **found,
        "images": found["images"][shown].astype("float32"),
        "x_adv": found["x_adv"][shown].astype("float32"),
        "labels": labels[found["examples"][shown]],
        "shown_classes": found["classes"][shown],
    }


def record(row: Row, batches: Iterable[Arrays]) -> Samples | None:
    """Records the arrays of all batches in the row, and returns the images that a report shows."""
    shown: list[list[np.ndarray]] = []
    for found in batches:
        row.record(found["examples"], found)
        if sum(len(parts[0]) for parts in shown) < _NUM_SAMPLES and len(found["labels"]):
            shown.append([found[name] for name in _SHOWN])
    if not shown:
        return None
    return Samples(*(np.concatenate(parts)[:_NUM_SAMPLES] for parts in zip(*shown, strict=True)))
