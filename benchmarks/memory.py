"""Prints the peak memory of a process that runs one PGD attack, in bytes.

    python benchmarks/memory.py --case resnet20 --batch-size 128 --num-steps 160

On a GPU, this is the backend's count of GPU memory. On a CPU, it is the peak resident memory.
"""

import argparse
import os
import pathlib
import re
import resource
import subprocess
import sys
from typing import Any

import device
import keras
from cases import CASES, Case, random_batch


def peak_bytes() -> int:
    """Returns the peak memory of this process.

    On Linux it reads `VmHWM`, because `ru_maxrss` is at least that of the parent process.
    """
    on_accelerator = device.peak_memory()
    if on_accelerator is not None:
        return on_accelerator
    status = pathlib.Path("/proc/self/status")
    if status.exists():
        return 1024 * int(re.search(r"VmHWM:\s*(\d+) kB", status.read_text()).group(1))
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def frugal() -> dict[str, str]:
    """Returns an environment in which a process allocates only the GPU memory it needs."""
    settings = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", "TF_FORCE_GPU_ALLOW_GROWTH": "true"}
    return os.environ | settings | {"KERAS_BACKEND": keras.backend.backend()}


def number_printed(script: str, *arguments: Any) -> int:
    """Runs a script in a new process and returns the last number that it prints."""
    command = [sys.executable, script, *map(str, arguments)]
    output = subprocess.run(
        command, env=frugal(), stdout=subprocess.PIPE, text=True, check=True
    ).stdout
    return int(output.split()[-1])


def peak_of_attack(case: Case, batch_size: int, num_steps: int) -> int:
    """Returns the peak memory of one attack, measured in a separate process."""
    sizes = ("--batch-size", batch_size, "--num-steps", num_steps)
    return number_printed(__file__, "--case", case.name, *sizes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--case", choices=CASES, required=True)
    parser.add_argument("--batch-size", type=int, required=True)
    parser.add_argument("--num-steps", type=int, required=True)
    args = parser.parse_args()
    case = CASES[args.case]
    x, y = random_batch(case, args.batch_size)
    x_adv = case.attack(args.num_steps)(case.make_model(), x, y, seed=0)
    device.synchronize(x_adv)
    print(peak_bytes())


if __name__ == "__main__":
    main()
