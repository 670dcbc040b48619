"""Compares the cost of PGD and adversarial training with that of their gradients.

    python benchmarks/training.py
    KERAS_BACKEND=jax python benchmarks/training.py --case resnet20 --batch-sizes 512 1024

The floor of an attack of m steps is m calls of the compiled gradient of its loss with respect to
its input. The floor of a step of adversarial training is m such calls and one ordinary training
step. The attack is timed as the public call on NumPy arrays, including its checks. The time of an
ordinary or adversarial training step is that of an epoch of `fit` of many steps, over arrays in
memory, less that of an epoch of one step, divided by the number of additional steps. This excludes
what `fit` does once per epoch. After all have been compiled, they are sampled in turn, in rounds.
The ratios are medians over the rounds.

The same attack may be faster or slower when it is compiled again. Attacks and adversarial steps are
therefore compiled for several models of the same structure, and the slowest counts.

The figures of each case are written to `benchmarks/results/` as soon as they have been measured.
"""

import argparse
import functools
import pathlib
import statistics
import time
from collections.abc import Callable
from typing import Any

import device
import harness
import keras
import memory
import numpy as np
from cases import CASES, Case, random_batch

import keras_robust as kr
from keras_robust import backend
from keras_robust.model.classifier import Classifier
from keras_robust.ops.logits import log_odds_against

_MAX_ARRAY_BYTES = 2**30
_MEMORY_STEPS = (10, 160)


class EpochClock(keras.callbacks.Callback):
    """Records the duration of the last epoch."""

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self.start = time.perf_counter()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        harness.wait(self.model.trainable_variables[0].value)
        self.seconds = time.perf_counter() - self.start


def input_gradient(classifier: Classifier, x: Any, y: Any) -> Any:
    """Computes the gradient of a step of PGD, without the step."""
    return backend.input_gradient(
        lambda z: keras.ops.sum(log_odds_against(classifier.outputs(z), y)), x
    )


def measured(
    function: Callable[[], Any], sample_seconds: float, least_calls: int = 1
) -> tuple[Any, float]:
    """Compiles `function`. Returns a function that times a call, and the time of compiling."""
    first = harness.seconds(function)
    one_call = harness.seconds(function)
    calls = max(least_calls, harness.calls_to_fill(sample_seconds, one_call))
    return lambda: harness.seconds(function, calls), max(0.0, first - one_call)


def measured_fit(
    model: keras.Model, x: Any, y: np.ndarray, sample_seconds: float
) -> tuple[Any, float]:
    """Like `measured`, for one training step of a compiled model. `x` may be a pair of arrays."""

    def epoch_seconds(steps: int) -> float:
        clock = EpochClock()
        images, labels = keras.tree.map_structure(lambda a: np.concatenate([a] * steps), (x, y))
        model.fit(images, labels, batch_size=len(y), shuffle=False, verbose=0, callbacks=[clock])
        return clock.seconds

    def step_seconds(steps: int) -> float:
        return (epoch_seconds(1 + steps) - epoch_seconds(1)) / steps

    first, one_step = epoch_seconds(1), epoch_seconds(1)
    compile_seconds = max(0.0, first - one_step)
    for _ in range(2):  # In the second estimate, the epoch's overhead hardly counts.
        steps = harness.calls_to_fill(sample_seconds, one_step)
        steps = min(steps, max(1, _MAX_ARRAY_BYTES // sum(a.nbytes for a in keras.tree.flatten(x))))
        one_step = epoch_seconds(1 + steps) / (1 + steps)
    return lambda: step_seconds(steps), compile_seconds


def measure(
    case: Case, batch_size: int, repeats: int, sample_seconds: float, num_compilations: int
) -> dict[str, Any]:
    """Measures one case at one batch size."""
    keras.utils.set_random_seed(0)
    x, y = random_batch(case, batch_size)
    classifier = case.make_model()
    classifier.compile(
        optimizer="adam",
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    gradient = Classifier(classifier).compiled("benchmark", input_gradient)
    on_device = keras.ops.convert_to_tensor(x), keras.ops.convert_to_tensor(y)
    prepared = {
        # As many calls as the longest attack has gradients. On a busy machine, the median of short
        # samples is less than the mean, which a long sample shows.
        "input_gradient": measured(
            lambda: gradient(*on_device), sample_seconds, least_calls=max(case.attack_steps)
        ),
        "training_step": measured_fit(classifier, x, y, sample_seconds),
    }
    for number in range(num_compilations):
        model = case.make_model()
        for steps in case.attack_steps:
            prepared[f"pgd_{steps}", number] = measured(
                functools.partial(case.attack(steps), model, x, y, seed=0), sample_seconds
            )
        robust = kr.RobustModel(model)
        robust.compile(
            optimizer="adam",
            loss=kr.losses.AdversarialTraining(case.attack(case.training_steps)),
            metrics=["accuracy"],
        )
        prepared["adversarial_training_step", number] = measured_fit(robust, x, y, sample_seconds)
    samples = harness.interleave({key: sample for key, (sample, _) in prepared.items()}, repeats)
    for name in [*(f"pgd_{m}" for m in case.attack_steps), "adversarial_training_step"]:
        keys = [(name, number) for number in range(num_compilations)]
        slowest = max(keys, key=lambda key: statistics.median(samples[key]))
        samples[name], prepared[name] = samples[slowest], prepared[slowest]
        for key in keys:
            del samples[key]

    gradients, plain = samples["input_gradient"], samples["training_step"]
    floors = {f"pgd_{m}": [m * g for g in gradients] for m in case.attack_steps}
    floors["adversarial_training_step"] = [
        case.training_steps * g + p for g, p in zip(gradients, plain, strict=True)
    ]
    return {
        "parameters": classifier.count_params(),
        "batch_size": batch_size,
        "repeats": repeats,
        "compilations": num_compilations,
        "adversarial_training_attack_steps": case.training_steps,
        "times": {
            name: {
                **harness.summary(values, floors.get(name)),
                "images_per_second": batch_size / statistics.median(values),
                "compile_seconds": prepared[name][1],
            }
            for name, values in samples.items()
        },
    }


def print_figures(title: str, figures: dict[str, Any]) -> None:
    print(f"\n{title}")
    print(f"{'':28}{'median ms':>11}{'min ms':>11}{'images/s':>11}{'ratio':>8}{'compile s':>11}")
    for name, times in figures["times"].items():
        ratio = f"{times['ratio_to_floor']:.3f}" if "ratio_to_floor" in times else ""
        print(
            f"{name:28}{1000 * times['median_seconds']:11.2f}{1000 * times['min_seconds']:11.2f}"
            f"{times['images_per_second']:11,.0f}{ratio:>8}{times['compile_seconds']:11.1f}"
        )
    for steps, peak in figures.get("peak_memory_bytes", {}).items():
        print(f"peak memory, PGD-{steps:<11}{peak / 2**20:11,.0f} MiB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--case", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=None)
    parser.add_argument("--repeats", type=int, default=11, help="rounds of samples")
    parser.add_argument(
        "--compilations", type=int, default=4, help="of each attack; the slowest counts"
    )
    parser.add_argument("--seconds", type=float, default=1.0, help="least duration of a sample")
    parser.add_argument(
        "--memory", action=argparse.BooleanOptionalAction, default=True, help="measure memory too"
    )
    parser.add_argument("--output", type=pathlib.Path, default=harness.RESULTS)
    args = parser.parse_args()

    def peaks(case: Case, batch_size: int) -> dict[int, int]:
        return {steps: memory.peak_of_attack(case, batch_size, steps) for steps in _MEMORY_STEPS}

    # Before this process allocates the GPU's memory.
    peak_memory = {}
    for name in args.case if args.memory else ():
        batch_size = (args.batch_sizes or CASES[name].gpu_batch_sizes)[0]
        peak_memory[name, batch_size] = peaks(CASES[name], batch_size)

    results = harness.Results("training", args.output)
    print(f"{results.machine}, {keras.backend.backend()}: {harness.run_description()['versions']}")
    on_cpu = device.peak_memory() is None
    for name in args.case:
        case = CASES[name]
        default = case.gpu_batch_sizes[:1] if on_cpu else case.gpu_batch_sizes
        for batch_size in args.batch_sizes or default:
            figures = measure(case, batch_size, args.repeats, args.seconds, args.compilations)
            if (name, batch_size) in peak_memory:
                figures["peak_memory_bytes"] = peak_memory[name, batch_size]
            results.add(f"{name}, batch size {batch_size}", figures)
            print_figures(f"{name}, batch size {batch_size}", figures)
    print(f"\nFigures are in {results.path}")


if __name__ == "__main__":
    main()
