"""Trains on 1,000 images: softmax against WNLL, trained in alternation and end to end.

    python examples/wnll_small_data.py --data-dir DIR
    python examples/wnll_small_data.py --data-dir DIR --dataset cifar10 --seeds 0 1 2
    python examples/wnll_small_data.py --data-dir DIR --epsilon 0.1 --epochs 60
    python examples/wnll_small_data.py --data-dir DIR --dataset cifar10_jpeg --num-train 5000 \
        --epsilon 0.0314 --growth 0.5 --epochs 16

Every method processes the same number of images in training, but for "softmax, a third", which
is what the others' linear parts alone would cost. Each run is written to the results as soon as
it has ended, and is not repeated.

With `--epsilon`, softmax and end to end are trained by PGD-5, and the worst case over PGD-100 with
2 restarts (for WNLL through each surrogate too) and Square is measured on the first 500 test
images, in one batch. With `--growth` the radius grows from 0 over that share of training.
"""

import argparse
import pathlib
from typing import Any

import keras
import numpy as np
from records import Records, interval

import keras_robust as kr
from keras_robust.model.arrays import as_arrays

L = keras.layers
CROSS_ENTROPY = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
NUM_TRAIN, BATCH, NUM_ATTACKED = 1000, 334, 500
METHODS = [
    "softmax, a third",
    "softmax",
    "WNLL on softmax features",
    "alternating",
    "end to end",
    "end to end + linear",
    "end to end, buffer block",
]
ADVERSARIAL = ["softmax", "end to end"]


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--dataset", default="mnist")
    parser.add_argument("--data-dir", default=None, help="folder of TensorFlow Datasets")
    parser.add_argument(
        "--test-split", default="test", help="train: those images of it that are not trained on"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--methods", nargs="+", choices=METHODS, help="default: all there are")
    parser.add_argument("--epsilon", type=float, default=None, help="trains adversarially")
    parser.add_argument(
        "--growth", type=float, default=0.0, help="share of training in which epsilon grows from 0"
    )
    parser.add_argument("--epochs", type=int, default=180, help="of 1,000 images")
    parser.add_argument("--num-train", type=int, default=NUM_TRAIN)
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("wnll_small_data.json"))
    args = parser.parse_args()
    if args.epochs < 12:
        parser.error(f"--epochs must be at least 12, some for each stage. Received: {args.epochs}")
    args.methods = args.methods or (METHODS if args.epsilon is None else ADVERSARIAL)
    if args.epsilon is not None and not set(args.methods) <= set(ADVERSARIAL):
        parser.error(f"--epsilon is for the methods {ADVERSARIAL}")
    if not 0 <= args.growth <= 1:
        parser.error(f"--growth must be from 0 to 1. Received: {args.growth}")
    return args


def network(shape: tuple, head: Any) -> keras.Model:
    return keras.Sequential([
        keras.Input(shape),
        L.Conv2D(32, 3, activation="relu"), L.MaxPooling2D(),
        L.Conv2D(64, 3, activation="relu"), L.MaxPooling2D(),
        L.Flatten(),
        head,
    ])  # fmt: skip


def head(size: int, **settings: Any) -> kr.layers.WNLLHead:
    return kr.layers.WNLLHead(10, template_size=size, **settings)


def adam(num_steps: int) -> keras.optimizers.Adam:
    """Adam, whose rate falls to 0 by a cosine: the same for softmax and end to end."""
    return keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(1e-3, num_steps))


def training_attack(epsilon: float | None, growth: float, num_steps: int) -> Any:
    """PGD-5, whose radius grows in the first part of the steps; `None` without a radius."""
    if epsilon is None:
        return None
    radius: Any = epsilon
    if growth > 0:
        grown = max(1, round(growth * num_steps))
        radius = keras.optimizers.schedules.PolynomialDecay(0.0, grown, epsilon)
    return kr.attacks.PGD(radius, num_steps=5)


def accuracy(model: keras.Model, test: tuple) -> float:
    outputs = model.predict(test[0], batch_size=500, verbose=0)
    return float(np.mean(outputs.argmax(axis=1) == test[1]))


def worst_case(model: keras.Model, test: tuple, epsilon: float) -> float:
    attacks = {
        "PGD": kr.attacks.PGD(epsilon, num_steps=100, num_restarts=2),
        "PGD, margin": kr.attacks.PGD(epsilon, num_steps=100, num_restarts=2, loss="margin"),
        "Square": kr.attacks.Square(epsilon, num_queries=1000),
    }
    x, y = (part[:NUM_ATTACKED] for part in test)
    report = kr.evaluate(
        model, x, y, attacks, batch_size=len(x), worst_case_only=True, checks=False, verbose=0
    )
    return report.accuracy("worst case")


def run(
    method: str,
    seed: int,
    train: tuple,
    test: tuple,
    epochs: int,
    epsilon: float | None,
    growth: float,
) -> dict[str, float]:
    """Trains by one method, and gives the test accuracy; with epsilon that in the worst case."""
    model = trained(method, seed, train, epochs, epsilon, growth)
    found = {"accuracy": accuracy(model, test)}
    if epsilon is not None:
        found["worst case"] = worst_case(model, test, epsilon)
    return found


def trained(
    method: str, seed: int, train: tuple, epochs: int, epsilon: float | None, growth: float
) -> keras.Model:
    keras.utils.set_random_seed(seed)
    shape, size = train[0].shape[1:], len(train[0])

    def num_steps(batch_size: int) -> int:
        return -(-size // batch_size) * epochs

    if method.startswith("softmax"):
        model = network(shape, L.Dense(10))
        part = epochs // 3 if method.endswith("third") else epochs
        wrapped, loss = model, CROSS_ENTROPY
        attack = training_attack(epsilon, growth, num_steps(100))
        if attack is not None:
            wrapped, loss = kr.RobustModel(model), kr.losses.AdversarialTraining(attack)
        wrapped.compile(adam(num_steps(100) * part // epochs), loss)
        wrapped.fit(*train, batch_size=100, epochs=part, verbose=0)
    elif method == "WNLL on softmax features":
        model = network(shape, head(size))
        model.compile(adam(num_steps(100)), CROSS_ENTROPY)
        model.fit(*train, batch_size=100, epochs=epochs, verbose=0)
        kr.training.adapt_template(model, *train)
    elif method == "alternating":
        model = network(shape, head(size // 2, units=200, gradient="straight_through"))
        kr.training.fit_wnll(
            model, *train, linear_epochs=epochs // 2 - 5, wnll_epochs=5, linear_batch_size=100,
            linear_optimizer=lambda number, steps: keras.optimizers.Adam(5e-4 if number else 1e-3),
            verbose=0, seed=seed,
        )  # fmt: skip
    else:
        model = network(shape, head(size, units=200 if method.endswith("block") else None))
        attack = training_attack(epsilon, growth, num_steps(BATCH))
        loss = kr.losses.GraphInterpolation(
            linear_weight=float(method.endswith("linear")), attack=attack
        )
        robust = kr.RobustModel(model)
        robust.compile(optimizer=adam(num_steps(BATCH)), loss=loss)
        robust.fit(*train, batch_size=BATCH, epochs=epochs, verbose=0)
        kr.training.adapt_template(model, *train)
    return model


def main() -> None:
    args = parse_arguments()
    train, test = (
        as_arrays(kr.datasets.load(args.dataset, split, data_dir=args.data_dir))
        for split in ("train", args.test_split)
    )
    if args.test_split == "train":
        test = tuple(part[args.num_train :] for part in test)
    train = tuple(part[: args.num_train] for part in train)
    records = Records(args.output)

    def key(method: str, seed: int) -> str:
        attacked = "" if args.epsilon is None else f" at epsilon {args.epsilon}"
        attacked += f", growing for {args.growth:g} of them" if args.growth else ""
        size = args.num_train
        return f"{args.dataset}, {size}, {args.epochs} epochs{attacked}, {method}, seed {seed}"

    for seed in args.seeds:
        for method in args.methods:
            name = key(method, seed)
            found = records.run(
                name,
                lambda method=method, seed=seed: run(
                    method, seed, train, test, args.epochs, args.epsilon, args.growth
                ),
            )
            shown = "  ".join(
                f"{k} {found[k]:.2%}" for k in ("accuracy", "worst case") if k in found
            )
            print(f"{name:65} {shown}   {found['seconds']} s", flush=True)
    print(f"\n{args.dataset}, {args.num_train} images, seeds {args.seeds}")
    for method in args.methods:
        runs = [records.runs[key(method, seed)] for seed in args.seeds]
        columns = [name for name in ("accuracy", "worst case") if name in runs[0]]
        shown = "  ".join(f"{k} {interval([run[k] for run in runs])}" for k in columns)
        print(f"  {method:28} {shown}")


if __name__ == "__main__":
    main()
