"""Runs the most important benchmarks on a GPU within six minutes, in order of importance.

    python benchmarks/gpu.py
    python benchmarks/gpu.py --minutes 3 --parts attacks losses
    python benchmarks/gpu.py --quick --minutes 20 --output DIR    # Tries all parts on a CPU.

It needs only Keras, JAX and NumPy. Each part is a benchmark of this folder that runs in a separate
process and writes each case as soon as it has been measured. When the time is up, the running part
is killed and the remaining parts are skipped. Cases that have been measured are kept. If a part
fails, the others still run, and the exit status is 1.
"""

import argparse
import dataclasses
import importlib.util
import os
import pathlib
import shlex
import signal
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent


@dataclasses.dataclass(frozen=True)
class Part:
    """A benchmark and its arguments. `quick` has further arguments for a minimal run."""

    name: str
    script: str
    arguments: str
    quick: str = ""


_TRAINING = "--batch-sizes 256 --compilations 1 --repeats 3 --seconds 0.3 --no-memory"
_TRAINING_QUICK = "--batch-sizes 2 --repeats 1 --seconds 0.001"
PARTS = (
    Part("resnet20", "training.py", f"--case resnet20 {_TRAINING}", _TRAINING_QUICK),
    Part("vgg16", "training.py", f"--case vgg16 {_TRAINING}", _TRAINING_QUICK),
    Part(
        "attacks",
        "attacks.py",
        "--network resnet20 --peers torchattacks --attacks fgsm pgd-40 apgd-ce square "
        "--slow-seconds 5",
        "--attacks fgsm square --epochs 0 --num-examples 4 --repeats 1",
    ),
    Part(
        "wnll",
        "wnll.py",
        "--parts forward training --neighbors exact --repeats 5 --seconds 0.3 --no-memory",
        "--templates 40 60 --batch-size 20 --repeats 1 --seconds 0.001",
    ),
    Part(
        "search",
        "wnll.py",
        "--parts search --neighbors exact --repeats 5 --seconds 0.1",
        "--sizes 100 200 --batch-size 5 --repeats 1 --seconds 0.001",
    ),
    Part(
        "losses",
        "losses.py",
        "--repeats 3 --seconds 0.2",
        "--losses 'Deep Defense' --repeats 1 --seconds 0.001",
    ),
)


def run(command: list[str], seconds: float) -> int | None:
    """Returns the exit status of a command, or `None` if it was killed after `seconds`."""
    process = subprocess.Popen(command, cwd=ROOT, start_new_session=True)
    try:
        return process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        return None
    finally:
        if process.poll() is None:  # Its child processes, too.
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def run_all(commands: dict[str, list[str]], seconds: float) -> dict[str, str]:
    """Runs the commands in order until the time is up. Returns the outcome of each."""
    start, outcomes = time.monotonic(), {}
    for name, command in commands.items():
        left = seconds - (time.monotonic() - start)
        if left <= 0:
            outcomes[name] = "left out"
            continue
        print(f"\n=== {name}, {left:.0f} s left: {shlex.join(command)}", flush=True)
        status = run(command, left)
        outcomes[name] = {0: "done", None: "cut short"}.get(status, f"failed, exit status {status}")
    return outcomes


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    names = [part.name for part in PARTS]
    parser.add_argument("--parts", nargs="+", choices=names, default=names)
    parser.add_argument("--minutes", type=float, default=6.0)
    parser.add_argument("--output", type=pathlib.Path, help="default: benchmarks/results")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to try all parts")
    return parser.parse_args(argv)


def commands(args: argparse.Namespace) -> dict[str, list[str]]:
    """Returns the command of each part, to be run in the repository's root."""
    output = ["--output", str(args.output.resolve())] if args.output else []
    return {
        part.name: [
            *(sys.executable, f"benchmarks/{part.script}", *shlex.split(part.arguments)),
            *(shlex.split(part.quick) if args.quick else []),
            *output,
        ]
        for part in PARTS
        if part.name in args.parts
    }


def main(argv: list[str] | None = None) -> int:
    args = parse_arguments(argv)
    backend = os.environ.setdefault("KERAS_BACKEND", "jax")
    for name in ("keras", backend):
        if importlib.util.find_spec(name) is None:
            sys.exit(f"{sys.executable} has no `{name}`. Use a Python in which it is installed.")
    # `keras_robust` need not be installed.
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    outcomes = run_all(commands(args), 60 * args.minutes)
    print("\n" + "\n".join(f"{name:10} {outcome}" for name, outcome in outcomes.items()))
    missing = [name for name, outcome in outcomes.items() if outcome != "done"]
    if missing:
        print(f"\nFor the rest: python benchmarks/gpu.py --parts {' '.join(missing)}")
    return int(any(outcome.startswith("failed") for outcome in outcomes.values()))


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # `run` then kills the part.
    sys.exit(main())
