"""Compares robust accuracies and costs of AutoAttack's versions `standard` and `fast`.

    python benchmarks/verdict.py --data-dir DIR
    python benchmarks/verdict.py --networks natural TRADES --num-examples 200 --data-dir DIR

Five small networks for Fashion-MNIST are trained once and saved in the folder `--cache`:

- one trained on clean images;
- three trained with PGD, with TRADES, and with PGD on tanh features and an angular penalty;
- one trained with PGD and a WNLL head, which classifies each image separately (`joint=False`) and
  is attacked by its own gradient.

Both versions attack the correctly classified images in one process. Attacks with a tiny radius on
a few images compile them before. On TensorFlow the compiled functions take any number of images.
On JAX, the times include some compiling. Robust accuracy counts the images that are classified
correctly and not fooled. `cpu_seconds` is the CPU time of the process, which other processes
disturb less than the elapsed time. The figures of each network are written to
`benchmarks/results/` as soon as they have been measured. `report.py` makes a table of them.
"""

import argparse
import pathlib
import time
from typing import Any

import harness
import keras
import models
import numpy as np

import keras_robust as kr
from keras_robust.model.arrays import as_arrays
from keras_robust.model.classifier import Classifier

# The radius of the attacks on each network, by norm. All networks but the natural one are trained
# with the L-infinity radius.
EPSILONS = {
    "natural": {"linf": 0.03},
    "PGD": {"linf": 0.1, "l2": 1.0, "l1": 8.0},
    "TRADES": {"linf": 0.1},
    "tanh, PGD": {"linf": 0.1},
    "WNLL, PGD": {"linf": 0.1},
}
VERSIONS = ("standard", "fast")
_NO_RADIUS, _NUM_COMPILED = 1e-6, 8


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--networks", nargs="*", choices=EPSILONS, default=list(EPSILONS))
    parser.add_argument("--dataset", default="fashion_mnist")
    parser.add_argument("--data-dir", default=None, help="folder of TensorFlow Datasets")
    parser.add_argument("--train-examples", type=int, default=20_000)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--num-examples", type=int, default=1000, help="test images to attack")
    parser.add_argument("--seed", type=int, default=0, help="of the training and of the attacks")
    parser.add_argument(
        "--cache",
        type=pathlib.Path,
        default=pathlib.Path("verdict_networks"),
        help="folder of the trained networks",
    )
    parser.add_argument("--output", type=pathlib.Path, default=harness.RESULTS)
    return parser.parse_args()


def network(name: str, shape: tuple[int, ...]) -> keras.Model:
    """Returns the small CNN with the head of the network `name`."""
    heads = {
        "tanh, PGD": [keras.layers.Dense(100), kr.layers.TanhClassifier(10)],
        "WNLL, PGD": [kr.layers.WNLLHead(10, units=100, template_size=500)],
    }
    model = models.small_cnn(shape)
    if name not in heads:
        return model
    return keras.Sequential([keras.Input(shape), *model.layers[:-2], *heads[name]])


def trained(name: str, x: np.ndarray, y: np.ndarray, args: argparse.Namespace) -> keras.Model:
    """Loads the network from `--cache`, or trains and saves it."""
    settings = (name, args.dataset, len(x), args.epochs, args.seed)
    path = args.cache / f"{', '.join(map(str, settings))}.keras"
    if path.exists():
        return keras.saving.load_model(path)
    keras.utils.set_random_seed(args.seed)
    model = network(name, x.shape[1:])
    attack = kr.attacks.PGD(EPSILONS[name]["linf"], num_steps=7)
    if name == "natural":
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(optimizer="adam", loss=loss)
        model.fit(x, y, batch_size=128, epochs=args.epochs, verbose=2)
    else:
        loss = kr.losses.TRADES if name == "TRADES" else kr.losses.AdversarialTraining
        robust = kr.RobustModel(model)
        robust.compile(optimizer="adam", loss=loss(attack))
        robust.fit(x, y, batch_size=128, epochs=args.epochs, verbose=2)
    if name == "WNLL, PGD":
        kr.training.adapt_template(model, x, y)
        model.layers[-1].joint = False
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"partial-{path.name}")
    model.save(partial)
    partial.replace(path)
    return model


def measure(
    model: keras.Model, norm: str, epsilon: float, x: np.ndarray, y: np.ndarray, seed: int
) -> dict[str, Any]:
    """Runs both versions on the images. Returns their robust accuracies and costs."""
    classifier = Classifier(model)
    correct = np.flatnonzero(classifier.predict(x).argmax(1) == y)
    x_correct, y_correct = x[correct], y[correct]
    figures: dict[str, Any] = {"num_examples": len(x), "norm": norm, "epsilon": epsilon}
    figures |= {"seed": seed, "clean_accuracy": len(correct) / len(x)}
    figures["versions"], fooled = {}, {}
    for version in VERSIONS:
        attack = kr.attacks.AutoAttack(epsilon, norm, version)
        few = x_correct[:_NUM_COMPILED], y_correct[:_NUM_COMPILED]
        attack.replace(epsilon=_NO_RADIUS).run(classifier, *few, seed=seed)
        started = time.perf_counter(), time.process_time()
        result = attack.run(classifier, x_correct, y_correct, seed=seed)
        ended = time.perf_counter(), time.process_time()
        fooled[version] = set(correct[result.success].tolist())
        figures["versions"][version] = {
            "attack": repr(attack),
            "robust_accuracy": float((~result.success).sum() / len(x)),
            "seconds": ended[0] - started[0],
            "cpu_seconds": ended[1] - started[1],
            "gradients_per_example": float(result.num_gradients.mean()),
            "evaluations_per_example": float(result.num_evaluations.mean()),
        }
    standard, fast = (figures["versions"][version] for version in VERSIONS)
    for name in ("seconds", "cpu_seconds"):
        figures[f"ratio_of_{name}"] = fast[name] / standard[name]
    figures["fooled_by_standard_alone"] = sorted(fooled["standard"] - fooled["fast"])
    figures["fooled_by_fast_alone"] = sorted(fooled["fast"] - fooled["standard"])
    return figures


def print_case(name: str, figures: dict[str, Any]) -> None:
    clean, norm, epsilon = (figures[key] for key in ("clean_accuracy", "norm", "epsilon"))
    print(f"\n{name}, {norm}, epsilon {epsilon}, clean {clean:.1%}")
    for version, found in figures["versions"].items():
        print(
            f"  {version:8} {found['seconds']:8.1f} s {found['cpu_seconds']:8.1f} s of CPU "
            f"{found['gradients_per_example']:8.1f} gradients "
            f"robust {found['robust_accuracy']:.1%}"
        )
    print(
        f"  fast / standard: {figures['ratio_of_seconds']:.3f}, of CPU "
        f"{figures['ratio_of_cpu_seconds']:.3f}; fooled by standard alone: "
        f"{figures['fooled_by_standard_alone']}, by fast alone: "
        f"{figures['fooled_by_fast_alone']}",
        flush=True,
    )


def main() -> None:
    args = parse_arguments()
    train, test = (
        as_arrays(kr.datasets.load(args.dataset, split, data_dir=args.data_dir).take(count))
        for split, count in (("train", args.train_examples), ("test", args.num_examples))
    )
    (x_train, y_train), (x, y) = ((x, y.astype("int64")) for x, y in (train, test))
    results = harness.Results("verdict", args.output)
    for name in args.networks:
        model = trained(name, x_train, y_train, args)
        for norm, epsilon in EPSILONS[name].items():
            figures = measure(model, norm, epsilon, x, y, args.seed)
            results.add(f"{name}, {args.dataset}, {len(x)} images, {norm}", figures)
            print_case(name, figures)
    print(f"\n{results.path}")


if __name__ == "__main__":
    main()
