"""What every benchmark shares: timing, the machine and the versions, a file of results."""

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

import keras

import keras_robust as kr
from keras_robust import backend

RESULTS = pathlib.Path(__file__).parent / "results"


def wait(x: Any) -> None:
    """Waits until the tensor `x` has been computed, without copying all of it from a GPU."""
    backend.synchronize(keras.ops.ravel(x)[:1])


def seconds(function: Callable[[], Any], calls: int = 1) -> float:
    """Seconds for each of `calls` calls, queued one after the other and awaited together."""
    start = time.perf_counter()
    for _ in range(calls):
        result = function()
    wait(result)
    return (time.perf_counter() - start) / calls


def calls_to_fill(duration: float, one_call: float) -> int:
    """How many calls of `one_call` seconds it takes to fill `duration` seconds."""
    return max(1, math.ceil(duration / one_call))


def interleave(measures: dict[str, Callable[[], float]], repeats: int) -> dict[str, list[float]]:
    """Samples each measure once in every round, so that a slow moment strikes all of them."""
    samples: dict[str, list[float]] = {name: [] for name in measures}
    for _ in range(repeats):
        for name, measure in measures.items():
            samples[name].append(measure())
    return samples


def summary(samples: list[float], floor: list[float] | None = None) -> dict[str, float]:
    """Median and minimum; with a `floor` from the same rounds, the ratio to it.

    The ratio is the median of the rounds' ratios. That of the two minima is a check on it: they
    differ where the machine was busy.
    """
    result = {"median_seconds": statistics.median(samples), "min_seconds": min(samples)}
    if floor is not None:
        ratios = [sample / below for sample, below in zip(samples, floor, strict=True)]
        result["floor_median_seconds"] = statistics.median(floor)
        result["ratio_to_floor"] = statistics.median(ratios)
        result["ratio_of_minima"] = min(samples) / min(floor)
    return result


def run_description() -> dict[str, Any]:
    """What a figure needs beside it: versions, date and command."""
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
    """One JSON file for each benchmark, kind of machine and backend.

    A case that is measured again replaces the earlier figures; the other cases stay.

    Args:
        benchmark: name of the benchmark, which the file's name begins with.
        folder: where the file is.
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
        partial = self.path.with_suffix(".partial")
        partial.write_text(json.dumps(content, indent=2) + "\n")
        partial.replace(self.path)
