"""A file of measurements. Each is written as soon as it is made, and is not repeated."""

import importlib.metadata
import json
import pathlib
import re
from collections.abc import Sequence
from typing import Any

import keras

import keras_robust as kr
from keras_robust import backend
from keras_robust.evaluation import KFold
from keras_robust.whole_file import write_whole


class Records:
    """A JSON file of records, by the name of the measurement.

    `found` holds the records in memory.

    Args:
        path: the file. It is created by the first `add`, or continued if it exists.
    """

    def __init__(self, path: pathlib.Path) -> None:
        self.path = path
        self.found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}

    def add(self, name: str, record: dict[str, Any]) -> None:
        """Adds a record and writes the file at once.

        An interrupted write leaves the earlier file intact.
        """
        self.found[name] = record
        self.path.parent.mkdir(parents=True, exist_ok=True)
        text = re.sub(r'\[[^"{}\[\]]*\]', _in_one_line, json.dumps(self.found, indent=1)) + "\n"
        write_whole(self.path, lambda file: file.write(text.encode()))


def _in_one_line(numbers: re.Match[str]) -> str:
    """Returns a list of numbers without its line breaks."""
    return re.sub(r"\s+", " ", numbers[0])


def environment() -> dict[str, str]:
    """Returns the machine and the versions of Keras, its backend and this package."""
    name = keras.backend.backend()
    versions = {"keras": keras.__version__, name: importlib.metadata.version(name)}
    versions["keras_robust"] = kr.__version__
    return {
        "machine": backend.device(),
        "versions": ", ".join(f"{package} {version}" for package, version in versions.items()),
    }


def mean_and_half_width(values: Sequence[float]) -> tuple[float, float]:
    """Returns the mean and the half-width of its 95% confidence interval, 0 for one value."""
    if len(values) < 2:
        return values[0], 0.0
    low, high = KFold([{"value": value} for value in values]).interval("value")
    return (low + high) / 2, (high - low) / 2
