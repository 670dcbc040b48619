"""Compares the cost of attacks with that of their gradients, and with four other libraries.

    python benchmarks/attacks.py
    python benchmarks/attacks.py --attacks fgsm pgd-40 --peers foolbox cleverhans
    python benchmarks/attacks.py --dataset mnist --data-dir DIR --epsilon 0.3
    KERAS_BACKEND=jax python benchmarks/attacks.py --network resnet20 --peers torchattacks

All libraries attack the same adversarially trained Keras model, in one process, on NumPy images.
The floor of an attack is the time of its gradients and forward passes alone: the number that its
result reports, times the duration of one in a compiled function on the whole batch. The time of an
attack is the time of the public call, including its checks, after a first call that compiles. An
attack that takes longer than `--slow-seconds` is not repeated. Foolbox, ART and CleverHans are in
the extra `peers`, and run on TensorFlow.

torchattacks only runs on the ResNet-20. It attacks a PyTorch copy of the network with the same
weights, on the same images and the same device, after a check that the logits agree. It runs in a
separate process of the Python given by `--torch-python`, after the other libraries, so that PyTorch
and Keras's backend may be in different environments.

Robust accuracy counts the examples that are classified correctly and not fooled. One function
evaluates the images of all libraries. The time of our public call includes this evaluation, which
CleverHans omits. For the attacks that CleverHans has, ours is therefore also timed without
evaluation, as it is used in training. The figures of each attack are written to
`benchmarks/results/` as soon as they have been measured.
"""

import argparse
import pathlib
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import harness
import keras
import models
import numpy as np
from peers import PEERS, torchattacks, why_no_torchattacks
from training import input_gradient

import keras_robust as kr
from keras_robust import backend
from keras_robust.attacks.result import perturbation_norms
from keras_robust.model.arrays import as_arrays
from keras_robust.model.classifier import Classifier

NETWORKS = {"cnn": models.small_cnn, "resnet20": models.resnet20}
PERTURB = "keras_robust, unjudged"


def perturb(model: Any, attack: kr.attacks.Attack, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Attacks as training does: like CleverHans, without checks or evaluation of the result."""

    def function(classifier: Classifier, x: Any, y: Any, seed: Any) -> Any:
        return attack.perturb(classifier, x, y, seed)

    key = ("benchmark perturb", attack.key, str(attack.data))
    compiled = Classifier(model).compiled(key, function)
    return keras.ops.convert_to_numpy(compiled(x, y, backend.make_seed(0)))


def attacks_at(epsilon: float, epsilon_l1: float) -> dict[str, kr.attacks.Attack]:
    """Returns the measured attacks. Those without `epsilon` are minimum-norm attacks."""
    in_l1: dict[str, Any] = {"epsilon": epsilon_l1, "norm": "l1"}
    return {
        "fgsm": kr.attacks.FGSM(epsilon),
        "pgd-40": kr.attacks.PGD(epsilon, step_size=epsilon / 30, num_steps=40),
        "deepfool": kr.attacks.DeepFool(norm="l2", num_steps=50),
        "carlini-wagner": kr.attacks.CarliniWagnerL2(
            learning_rate=0.1, num_steps=100, initial_const=1.0, binary_search_steps=5
        ),
        "apgd-ce": kr.attacks.APGD(epsilon, loss="ce", num_steps=100),
        "apgd-dlr": kr.attacks.APGD(epsilon, loss="dlr", num_steps=100),
        "square": kr.attacks.Square(epsilon, num_queries=1000),
        "hop-skip-jump": kr.attacks.HopSkipJump(norm="l2", num_queries=1000),
        "autoattack": kr.attacks.AutoAttack(epsilon),
        "autoattack-fast": kr.attacks.AutoAttack(epsilon, version="fast"),
        "pgd-l1": kr.attacks.PGD(step_size=epsilon_l1 / 5, num_steps=40, **in_l1),
        "apgd-ce-l1": kr.attacks.APGD(loss="ce", num_steps=100, **in_l1),
        "apgd-dlr-l1": kr.attacks.APGD(loss="dlr", num_steps=100, **in_l1),
        "square-l1": kr.attacks.Square(num_queries=1000, **in_l1),
    }


def parse_arguments(names: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--attacks", nargs="*", choices=names, default=names)
    peers = ["foolbox", "art", "cleverhans", "torchattacks"]
    parser.add_argument("--peers", nargs="*", choices=peers, default=peers)
    parser.add_argument("--torch-python", default=sys.executable, help="Python with torchattacks")
    parser.add_argument("--network", choices=NETWORKS, default="cnn")
    parser.add_argument("--dataset", default="fashion_mnist_subset")
    parser.add_argument("--data-dir", default=None, help="folder of TensorFlow Datasets")
    parser.add_argument("--epsilon", type=float, default=0.1, help="radius in training and attacks")
    parser.add_argument("--epsilon-l1", type=float, default=8.0, help="radius in the L1 norm")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--num-examples", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--slow-seconds", type=float, default=60.0, help="do not repeat slower attacks"
    )
    parser.add_argument("--output", type=pathlib.Path, default=harness.RESULTS)
    return parser.parse_args()


def trained_model(args: argparse.Namespace) -> keras.Model:
    """Trains the network adversarially with PGD-7."""
    keras.utils.set_random_seed(0)
    train = kr.datasets.load(args.dataset, "train", data_dir=args.data_dir)
    batches = train.shuffle(len(train), seed=0).batch(128)
    shape = next(iter(train.take(1)))[0].shape
    robust = kr.RobustModel(NETWORKS[args.network](shape=tuple(shape)))
    attack = kr.attacks.PGD(args.epsilon, num_steps=7)
    robust.compile(optimizer="adam", loss=kr.losses.AdversarialTraining(attack))
    robust.fit(batches, epochs=args.epochs, shuffle=False, verbose=2)
    return robust.base_model


def timed(
    function: Callable[[], Any], args: argparse.Namespace, compiles: bool
) -> tuple[Any, dict[str, float]]:
    """Returns the result of `function`, with the durations of the first call and of later ones."""
    start = time.perf_counter()
    result = function()
    first = time.perf_counter() - start
    samples: list[float] = []
    last = 0.0 if compiles else first
    while len(samples) < args.repeats and last < args.slow_seconds:
        start = time.perf_counter()
        result = function()
        last = time.perf_counter() - start
        samples.append(last)
    return result, duration([first, *samples])


def duration(seconds: list[float]) -> dict[str, float]:
    """Summarizes the durations of calls. The first call only counts if it is the only one."""
    samples = seconds[1:] or seconds
    return {
        "first_seconds": seconds[0],
        "median_seconds": statistics.median(samples),
        "min_seconds": min(samples),
    }


def quality(
    model: keras.Model, x: np.ndarray, y: np.ndarray, x_adv: np.ndarray, attack: Any
) -> dict[str, float]:
    """Returns the robust accuracy and the sizes of the perturbations."""
    fooled = Classifier(model).predict(x_adv.astype("float32")).argmax(1) != y
    correct = Classifier(model).predict(x).argmax(1) == y
    norms = perturbation_norms(x, x_adv)
    figures = {
        "robust_accuracy": float((correct & ~fooled).mean()),
        "largest_linf": float(norms["linf"].max()),
        "largest_l1": float(norms["l1"].max()),
    }
    if getattr(attack, "epsilon", None) is None:
        figures["median_l2_of_fooled"] = float(np.median(norms["l2"][correct & fooled]))
    return figures


def peer_figures(
    ours: dict[str, Any], figures: dict[str, float], found: dict[str, float]
) -> dict[str, float]:
    """Combines the figures of a peer, and adds the ratio of its time to ours."""
    ratio = figures["median_seconds"] / ours["median_seconds"]
    return {**figures, **found, "times_as_slow_as_ours": ratio}


def measure(
    model: keras.Model, name: str, attack: Any, x: np.ndarray, y: np.ndarray, args: Any
) -> dict[str, Any]:
    gradient = Classifier(model).compiled("benchmark gradient", input_gradient)
    tensors = keras.ops.convert_to_tensor(x), keras.ops.convert_to_tensor(y)
    harness.wait(gradient(*tensors))
    forward = Classifier(model).compiled("benchmark forward", Classifier.outputs)
    harness.wait(forward(tensors[0]))
    repeats = max(args.repeats, 3)
    floors = harness.interleave(
        {
            "gradient": lambda: harness.seconds(lambda: gradient(*tensors), 5),
            "forward": lambda: harness.seconds(lambda: forward(tensors[0]), 5),
        },
        repeats,
    )
    one_gradient, one_forward = (statistics.median(samples) for samples in floors.values())

    result, figures = timed(lambda: attack.run(model, x, y, seed=0), args, compiles=True)
    num_gradients = float(result.num_gradients.mean())
    num_evaluations = float(result.num_evaluations.mean())
    floor = num_gradients * one_gradient + num_evaluations * one_forward
    ours = {
        **figures,
        **quality(model, x, y, result.x_adv, attack),
        "gradients_per_example": num_gradients,
        "evaluations_per_example": num_evaluations,
        "floor_seconds": floor,
        "ratio_to_floor": figures["median_seconds"] / floor,
    }
    libraries = {"keras_robust": ours}
    peers = {library: run for library, run in PEERS[name].items() if library in args.peers}
    if "cleverhans" in PEERS[name]:
        peers = {PERTURB: perturb, **peers}
    for library, run in peers.items():
        compiles = library == PERTURB
        x_adv, figures = timed(lambda run=run: run(model, attack, x, y), args, compiles)
        libraries[library] = peer_figures(ours, figures, quality(model, x, y, x_adv, attack))
    return {
        "dataset": args.dataset,
        "network": args.network,
        "num_examples": len(x),
        "attack": repr(attack),
        "one_gradient_seconds": one_gradient,
        "one_forward_seconds": one_forward,
        "libraries": libraries,
    }


def print_row(library: str, row: dict[str, float]) -> None:
    ratio = row.get("ratio_to_floor") or row["times_as_slow_as_ours"]
    unit = "times its floor" if library == "keras_robust" else "times ours"
    distance = row.get("median_l2_of_fooled")
    print(
        f"  {library:22} {row['median_seconds']:8.3f} s  {ratio:7.2f} {unit:15}  "
        f"robust {row['robust_accuracy']:.1%}"
        + ("" if distance is None else f"  median L2 {distance:.4f}"),
        flush=True,
    )


def main() -> None:
    args = parse_arguments(list(attacks_at(0.1, 8.0)))
    missing = why_no_torchattacks(args.torch_python, args.network)
    if missing and "torchattacks" in args.peers:
        print(f"torchattacks is skipped: {missing}")
        args.peers.remove("torchattacks")
    if keras.backend.backend() != "tensorflow":
        args.peers = [peer for peer in args.peers if peer == "torchattacks"]
    test = kr.datasets.load(args.dataset, "test", data_dir=args.data_dir)
    x, y = as_arrays(test.take(args.num_examples))
    y = y.astype("int64")
    model = trained_model(args)
    results = harness.Results("attacks", args.output)
    attacks = {name: attacks_at(args.epsilon, args.epsilon_l1)[name] for name in args.attacks}
    cases = {}

    def add(name: str) -> None:
        network = "" if args.network == "cnn" else f", {args.network}"
        results.add(f"{name}, {args.dataset}, {len(x)} images{network}", cases[name])

    for name, attack in attacks.items():
        cases[name] = measure(model, name, attack, x, y, args)
        add(name)
        print(f"\n{name}, {len(x)} images")
        for library, row in cases[name]["libraries"].items():
            print_row(library, row)
    if "torchattacks" in args.peers:
        print()
        for name, x_adv, seconds in torchattacks(model, attacks, x, y, args):
            libraries = cases[name]["libraries"]
            found = quality(model, x, y, x_adv, attacks[name])
            row = peer_figures(libraries["keras_robust"], duration(seconds), found)
            libraries["torchattacks"] = row
            add(name)
            print_row(f"torchattacks, {name}", row)
    print(f"\n{results.path}")


if __name__ == "__main__":
    main()
