"""What the long examples share: results that are written as they come, and are not repeated."""

import json
import os
import pathlib
import platform
import re
import shlex
import sys
import time
from collections.abc import Callable
from typing import Any

import keras
import numpy as np


class Records:
    """A JSON file of runs, each computed once, with the command that made them.

    Args:
        path: the file, which is made or continued.
    """

    def __init__(self, path: pathlib.Path) -> None:
        self.path = path
        self.content = json.loads(path.read_text()) if path.exists() else {"runs": {}}
        self.content["command"] = shlex.join(
            ["python", f"examples/{pathlib.Path(sys.argv[0]).name}", *sys.argv[1:]]
        )
        self.content["machine"] = machine()

    def run(self, name: str, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What the file has under this name, else what `compute` gives; written at once."""
        runs = self.content["runs"]
        if name not in runs:
            start = time.perf_counter()
            found = compute()
            runs[name] = {**found, "seconds": round(time.perf_counter() - start)}
            partial = self.path.with_suffix(".partial")
            partial.write_text(json.dumps(self.content, indent=2) + "\n")
            partial.replace(self.path)
        return runs[name]


def machine() -> str:
    """Processor or GPU, and the versions that a figure depends on."""
    from keras_robust import backend

    device = backend.device()
    if device.lower() == "cpu":
        cpuinfo = pathlib.Path("/proc/cpuinfo")
        text = cpuinfo.read_text() if cpuinfo.exists() else ""
        name = re.search(r"model name\s*:\s*(.+)", text)
        device = f"{name.group(1) if name else platform.machine()}, {os.cpu_count()} cores"
    return f"{device}, Keras {keras.__version__}, {keras.backend.backend()}"


def interval(values: list[float]) -> str:
    """Mean and half of the 95% interval by Student's t, in percent."""
    mean = 100 * np.mean(values)
    if len(values) < 2:
        return f"{mean:.1f}"
    t = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78, 6: 2.57, 7: 2.45, 8: 2.36, 9: 2.31, 10: 2.26}
    half = t.get(len(values), 2.0) * np.std(values, ddof=1) / np.sqrt(len(values))
    return f"{mean:.1f} +- {100 * half:.1f}"
