"""Times the rounds of AutoAttack on models of 224 x 224 images and 1,000 classes.

    python benchmarks/imagenet_cost.py
    python benchmarks/imagenet_cost.py --models MobileNetV2 --batch-size 4

It prints the table of evaluation costs in `docs/evaluation.md`. Each model of `keras.applications`
has random weights and is attacked on random images, with its own predictions as labels: speed does
not depend on the images' content. The radius is so small that no image is fooled and no round ends
early. The figures are therefore upper bounds of the cost of a batch.

A forward pass and an input gradient are timed in compiled functions. APGD and FAB run for 20 steps
(towards one class where targeted) and Square for 50 queries, each after a run that compiles. This
gives the time of one pass of each attack, including the attack's own arithmetic. The time of a
round or a batch is the number of AutoAttack's passes times that of one pass. The time to save a
round is measured for the attacks whose rounds save the least and the most. On a CPU, if
`processor_seconds` is near the number of cores times `seconds`, the machine was otherwise idle.
"""

import argparse
import pathlib
import statistics
import tempfile
import time
from collections.abc import Mapping
from typing import Any

import harness
import keras
import numpy as np
from training import input_gradient

import keras_robust as kr
from keras_robust import backend
from keras_robust.attacks.journal import Journal, Store
from keras_robust.attacks.meter import clock
from keras_robust.evaluation.progress import Progress
from keras_robust.model.classifier import Classifier

EPSILON = 1e-9
NUM_CLASSES = 1000
# Shortened versions of the attacks of AutoAttack, in its order.
SAMPLES = {
    "APGD": kr.attacks.APGD(EPSILON, loss="ce", num_steps=20),
    "APGD, targeted": kr.attacks.APGD(EPSILON, loss="dlr_targeted", num_steps=20, num_targets=1),
    "FAB": kr.attacks.FAB(EPSILON, num_steps=20, num_targets=1),
    "Square": kr.attacks.Square(EPSILON, num_queries=50),
}
# The second also saves Adam's variables and its two moments.
SAVED = {
    "PGD": kr.attacks.PGD(EPSILON, num_steps=1, num_restarts=2),
    "CarliniWagnerL2": kr.attacks.CarliniWagnerL2(num_steps=1, binary_search_steps=1),
}


class Timed:
    """A store that records how long its last write took."""

    def __init__(self, store: Store) -> None:
        self.store, self.seconds = store, 0.0

    def read(self, name: str) -> dict[str, np.ndarray] | None:
        return self.store.read(name)

    def write(self, name: str, arrays: Mapping[str, np.ndarray]) -> None:
        start = time.perf_counter()
        self.store.write(name, arrays)
        self.seconds = time.perf_counter() - start


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", nargs="*", default=["MobileNetV2", "ResNet50"])
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5, help="of the single passes")
    parser.add_argument("--output", type=pathlib.Path, default=harness.RESULTS)
    return parser.parse_args()


def measure(name: str, batch_size: int, repeats: int) -> dict[str, Any]:
    keras.utils.set_random_seed(0)
    model = getattr(keras.applications, name)(weights=None, classifier_activation=None)
    x = np.random.default_rng(0).random((batch_size, *model.input_shape[1:]), "float32")
    classifier = Classifier(model)
    y = classifier.predict(x).argmax(1)
    figures: dict[str, Any] = {"parameters": model.count_params(), "batch_size": batch_size}
    figures["one_pass"] = passes(classifier, x, y, repeats)
    print(f"{name}, one pass of {batch_size} images: {figures['one_pass']}", flush=True)
    figures["attacks"] = {}
    for (attack_name, sample), attack in zip(SAMPLES.items(), autoattack(), strict=True):
        sample.run(model, *(v[:1] if backend.DYNAMIC_BATCH else v for v in (x, y)), seed=0)
        start, work = time.perf_counter(), time.process_time()
        result = sample.run(model, x, y, seed=0)
        seconds = time.perf_counter() - start
        counts, forward_seconds = result.num_evaluations, 0.0
        if attack.uses_gradient:  # A round has as many forward passes as the sample.
            forward_seconds = float(result.num_evaluations.mean()) * figures["one_pass"]["forward"]
            counts = result.num_gradients
        one_pass = (seconds - forward_seconds) / float(counts.mean())
        costs = [cost.passes for cost in attack.round_costs(NUM_CLASSES)]
        figures["attacks"][attack_name] = {
            "sample": repr(sample),
            "seconds": seconds,
            "processor_seconds": time.process_time() - work,
            "passes": float(counts.mean()),
            "fooled": int(result.success.sum()),
            "num_rounds": len(costs),
            "longest_round_seconds": max(costs) * one_pass + forward_seconds,
            "batch_seconds": sum(costs) * one_pass + len(costs) * forward_seconds,
        }
        print(f"{attack_name}: {figures['attacks'][attack_name]}", flush=True)
    figures["saving"] = {attack: saving(classifier, x, y, attack) for attack in SAVED}
    return figures


def passes(classifier: Classifier, x: Any, y: Any, repeats: int) -> dict[str, float]:
    """Returns the median durations of a forward pass and of an input gradient."""
    forward = classifier.compiled("benchmark forward", Classifier.outputs)
    gradient = classifier.compiled("benchmark gradient", input_gradient)
    x, y = (keras.ops.convert_to_tensor(values) for values in (x, y))
    harness.wait(forward(x))
    harness.wait(gradient(x, y))
    samples = harness.interleave(
        {
            "forward": lambda: harness.seconds(lambda: forward(x)),
            "gradient": lambda: harness.seconds(lambda: gradient(x, y)),
        },
        repeats,
    )
    return {kind: statistics.median(values) for kind, values in samples.items()}


def autoattack() -> list[kr.attacks.Attack]:
    return kr.attacks.AutoAttack(EPSILON).ensemble(NUM_CLASSES).attacks


def saving(classifier: Classifier, x: Any, y: Any, name: str) -> dict[str, float]:
    """Returns the duration of saving the result of a round, and its size in bytes."""
    classifier.check(x, y)
    with tempfile.TemporaryDirectory() as folder:
        timed = []

        def attack(journal: Journal) -> dict[str, np.ndarray]:
            timed.append(Timed(journal.store))
            SAVED[name].run_checked(classifier, x, y, 0, journal=Journal(store=timed[0]))
            size = sum(path.stat().st_size for path in pathlib.Path(folder).rglob("*.npz"))
            return {"size": np.array(size)}

        size = Progress(pathlib.Path(folder) / "progress").attacked("batch", attack)["size"]
    return {"bytes": int(size), "seconds": timed[0].seconds}


def main() -> None:
    args = parse_arguments()
    results = harness.Results("imagenet_cost", args.output)
    cases = {}
    for name in args.models:
        cases[name] = measure(name, args.batch_size, args.repeats)
        results.add(f"{name}, {args.batch_size} images", cases[name])
    print(f"\n{results.machine}, {keras.backend.backend()}, batches of {args.batch_size} images\n")
    print(f"| | {' | '.join(cases)} |\n|---|{'---|' * len(cases)}")
    for kind in ("forward", "gradient"):
        row(f"one pass, {kind}", [f"{case['one_pass'][kind]:.2f} s" for case in cases.values()])
    for name in SAMPLES:
        found = [case["attacks"][name] for case in cases.values()]
        row(
            f"{name}: longest of {found[0]['num_rounds']} rounds, all of them",
            [f"{clock(f['longest_round_seconds'])}, {clock(f['batch_seconds'])}" for f in found],
        )
    totals = [
        sum(attack["batch_seconds"] for attack in case["attacks"].values())
        for case in cases.values()
    ]
    row("AutoAttack", [clock(total) for total in totals])
    for name in SAVED:
        saved = [case["saving"][name] for case in cases.values()]
        row(
            f"saving a round of {name}",
            [f"{1e3 * s['seconds']:.0f} ms, {s['bytes'] / 1e6:.1f} MB" for s in saved],
        )
    print(f"\n{results.path}")


def row(name: str, cells: list[str]) -> None:
    print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
