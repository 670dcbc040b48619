"""Shared code of the benchmarks: timing, versions of packages, and files of results."""

import datetime
import importlib.metadata
import json
import math
import pathlib
import platform
import re
import shlex
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import device
import keras

import keras_robust as kr
from keras_robust import backend
from keras_robust.whole_file import write_whole

RESULTS = pathlib.Path(__file__).parent / "results"


def wait(x: Any) -> None:
    """Waits until the tensor `x` has been computed. Copies one element of it, not all."""
    device.synchronize(keras.ops.ravel(x)[:1])


def seconds(function: Callable[[], Any], calls: int = 1) -> float:
    """Returns the mean duration of `calls` calls. They are queued, and the last one is awaited."""
    start = time.perf_counter()
    for _ in range(calls):
        result = function()
    wait(result)
    return (time.perf_counter() - start) / calls


def calls_to_fill(duration: float, one_call: float) -> int:
    """Returns the number of calls of `one_call` seconds that take at least `duration` seconds."""
    return max(1, math.ceil(duration / one_call))


def interleave(measures: dict[str, Callable[[], float]], repeats: int) -> dict[str, list[float]]:
    """Samples each measure once per round, so that a slow period affects all of them."""
    samples: dict[str, list[float]] = {name: [] for name in measures}
    for _ in range(repeats):
        for name, measure in measures.items():
            samples[name].append(measure())
    return samples


def summary(samples: list[float], floor: list[float] | None = None) -> dict[str, float]:
    """Returns the median and the minimum and, for a `floor` from the same rounds, ratios to it.

    `ratio_to_floor` is the median of the rounds' ratios. `ratio_of_minima` is a check on it: the
    two differ if the machine was busy.
    """
    result = {"median_seconds": statistics.median(samples), "min_seconds": min(samples)}
    if floor is not None:
        ratios = [sample / below for sample, below in zip(samples, floor, strict=True)]
        result["floor_median_seconds"] = statistics.median(floor)
        result["ratio_to_floor"] = statistics.median(ratios)
        result["ratio_of_minima"] = min(samples) / min(floor)
    return result


def run_description() -> dict[str, Any]:
    """Returns what is recorded with each figure: versions, date and command."""
    name = keras.backend.backend()
    command = shlex.join([f"benchmarks/{pathlib.Path(sys.argv[0]).name}", *sys.argv[1:]])
    packages = {"tensorflow": ["tensorflow"], "jax": ["jax", "jaxlib"]}[name]
    return {
        "versions": {
            "python": platform.python_version(),
            "keras": keras.__version__,
            **{package: importlib.metadata.version(package) for package in packages},
            "keras_robust": kr.__version__,
        },
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": f"KERAS_BACKEND={name} python {command}",
    }


class Results:
    """The results of a benchmark: one JSON file for each kind of machine and backend.

    A case that is measured again replaces its earlier figures. The other cases are kept.

    Args:
        benchmark: Name of the benchmark, with which the file's name begins.
        folder: Folder of the file.
    """

    def __init__(self, benchmark: str, folder: pathlib.Path) -> None:
        self.machine = backend.device()
        slug = re.sub(r"[^a-z0-9]+", "-", self.machine.lower()).strip("-")
        self.path = folder / f"{benchmark}-{slug}-{keras.backend.backend()}.json"

    def add(self, case: str, figures: dict[str, Any]) -> None:
        """Writes the figures of one case into the file."""
        content = json.loads(self.path.read_text()) if self.path.exists() else {}
        content["machine"] = self.machine
        content["backend"] = keras.backend.backend()
        content.setdefault("cases", {})[case] = {**run_description(), **figures}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(content, indent=2) + "\n"
        write_whole(self.path, lambda file: file.write(text.encode()))
