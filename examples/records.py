"""What the long examples share: results that are written as they come, and are not repeated."""

import json
import pathlib
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import keras

from keras_robust import backend
from keras_robust.evaluation import KFold


class Records:
    """A JSON file of runs, each computed once, with the command and the machine that made it.

    Args:
        path: the file, which is made or continued.
    """

    def __init__(self, path: pathlib.Path) -> None:
        self.path = path
        self.runs: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}

    def run(self, name: str, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What the file has under this name, else what `compute` gives; written at once."""
        if name not in self.runs:
            start = time.perf_counter()
            found = compute()
            self.runs[name] = {**found, "seconds": round(time.perf_counter() - start), **made_by()}
            partial = self.path.with_suffix(".partial")
            partial.write_text(json.dumps(self.runs, indent=2) + "\n")
            partial.replace(self.path)
        return self.runs[name]


def made_by() -> dict[str, str]:
    """The command and the machine, with the versions that a figure depends on."""
    command = shlex.join(["python", f"examples/{pathlib.Path(sys.argv[0]).name}", *sys.argv[1:]])
    versions = f"Keras {keras.__version__}, {keras.backend.backend()}"
    return {"command": command, "machine": f"{backend.device()}, {versions}"}


def interval(values: Sequence[float]) -> str:
    """Mean and half of the 95% interval by Student's t, in percent."""
    center, half = center_and_half(values)
    return f"{100 * center:.1f}%" + (f" +- {100 * half:.1f}" if len(values) > 1 else "")


def center_and_half(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half of the 95% interval, 0 for one value."""
    if len(values) < 2:
        return values[0], 0.0
    low, high = KFold([{"value": value} for value in values]).interval("value")
    return (low + high) / 2, (high - low) / 2
