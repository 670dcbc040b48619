"""A file of measurements, each written as soon as it is made and not repeated."""

import importlib.metadata
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import keras

import keras_robust as kr
from keras_robust import backend
from keras_robust.evaluation import KFold
from keras_robust.whole_file import write_whole


class Records:
    """A JSON file that maps names of measurements to what was found.

    Args:
        path: the file, which is made or continued.
    """

    def __init__(self, path: pathlib.Path) -> None:
        self.path = path
        self.found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}

    def add(self, name: str, record: dict[str, Any]) -> None:
        """Writes a record at once, into a file that is whole at any time."""
        self.found[name] = record
        self.path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(self.found, indent=1) + "\n"
        write_whole(self.path, lambda file: file.write(text.encode()))


def made_by() -> dict[str, str]:
    """The machine and the versions, which a figure depends on."""
    name = keras.backend.backend()
    versions = {"keras": keras.__version__, name: importlib.metadata.version(name)}
    versions["keras_robust"] = kr.__version__
    return {
        "machine": backend.device(),
        "versions": ", ".join(f"{package} {version}" for package, version in versions.items()),
    }


def center_and_half(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half of the 95% interval, 0 for one value."""
    if len(values) < 2:
        return values[0], 0.0
    low, high = KFold([{"value": value} for value in values]).interval("value")
    return (low + high) / 2, (high - low) / 2
