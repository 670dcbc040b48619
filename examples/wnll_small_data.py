"""Trains on 1,000 images: softmax against WNLL, trained in alternation and end to end.

    python examples/wnll_small_data.py --data-dir DIR
    python examples/wnll_small_data.py --data-dir DIR --dataset cifar10 --seeds 0 1 2

Every method processes the same number of images in training, but for "softmax, a third", which
is what the others' linear parts alone would cost. Each run is written to the results as soon as
it has ended, and is not repeated.
"""

import argparse
import json
import math
import pathlib
import time
from typing import Any

import keras
import numpy as np

import keras_robust as kr
from keras_robust.evaluation.arrays import as_arrays

L = keras.layers
CROSS_ENTROPY = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
NUM_TRAIN, BATCH = 1000, 334
METHODS = [
    "softmax, a third",
    "softmax",
    "WNLL on softmax features",
    "alternating",
    "end to end",
    "end to end + linear",
    "end to end, buffer block",
]


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--dataset", default="mnist")
    parser.add_argument("--data-dir", default=None, help="folder of TensorFlow Datasets")
    parser.add_argument(
        "--test-split", default="test", help="train: those images of it that are not trained on"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--epochs", type=int, default=180, help="of 1,000 images")
    parser.add_argument("--num-train", type=int, default=NUM_TRAIN)
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("wnll_small_data.json"))
    return parser.parse_args()


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


def adam(num_images: int, batch_size: int, epochs: int) -> keras.optimizers.Adam:
    """Adam, whose rate falls to 0 by a cosine: the same for softmax and end to end."""
    steps = -(-num_images // batch_size) * epochs
    return keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(1e-3, steps))


def accuracy(model: keras.Model, test: tuple) -> float:
    outputs = model.predict(test[0], batch_size=500, verbose=0)
    return float(np.mean(outputs.argmax(axis=1) == test[1]))


def run(method: str, seed: int, train: tuple, test: tuple, epochs: int) -> float:
    """Trains by one method, and gives the test accuracy."""
    keras.utils.set_random_seed(seed)
    shape, size = train[0].shape[1:], len(train[0])
    if method.startswith("softmax"):
        model = network(shape, L.Dense(10))
        part = epochs // 3 if method.endswith("third") else epochs
        model.compile(adam(size, 100, part), CROSS_ENTROPY)
        model.fit(*train, batch_size=100, epochs=part, verbose=0)
    elif method == "WNLL on softmax features":
        model = network(shape, head(size))
        model.compile(adam(size, 100, epochs), CROSS_ENTROPY)
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
        loss = kr.losses.GraphInterpolation(linear_weight=float(method.endswith("linear")))
        robust = kr.RobustModel(model)
        robust.compile(optimizer=adam(size, BATCH, epochs), loss=loss)
        robust.fit(*train, batch_size=BATCH, epochs=epochs, verbose=0)
        kr.training.adapt_template(model, *train)
    return accuracy(model, test)


def interval(values: list[float]) -> str:
    """Mean and 95% interval by Student's t."""
    mean = np.mean(values)
    if len(values) < 2:
        return f"{mean:.1%}"
    t = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78}.get(len(values), 2.0)
    half = t * np.std(values, ddof=1) / math.sqrt(len(values))
    return f"{mean:.1%} +- {100 * half:.1f}"


def main() -> None:
    args = parse_arguments()
    train, test = (
        as_arrays(kr.datasets.load(args.dataset, split, data_dir=args.data_dir))
        for split in ("train", args.test_split)
    )
    if args.test_split == "train":
        test = tuple(part[args.num_train :] for part in test)
    train = tuple(part[: args.num_train] for part in train)
    saved = json.loads(args.output.read_text()) if args.output.exists() else {}
    for seed in args.seeds:
        for method in args.methods:
            key = f"{args.dataset}, {args.num_train}, {args.epochs} epochs, {method}, seed {seed}"
            if key not in saved:
                start = time.perf_counter()
                found = run(method, seed, train, test, args.epochs)
                saved[key] = {"accuracy": found, "seconds": round(time.perf_counter() - start)}
                args.output.write_text(json.dumps(saved, indent=2) + "\n")
            print(f"{key:65} {saved[key]['accuracy']:.2%}   {saved[key]['seconds']} s", flush=True)
    print(f"\n{args.dataset}, {args.num_train} images, seeds {args.seeds}")
    for method in args.methods:
        runs = [
            saved[f"{args.dataset}, {args.num_train}, {args.epochs} epochs, {method}, seed {seed}"]
            for seed in args.seeds
        ]
        print(f"  {method:28} {interval([run['accuracy'] for run in runs])}")


if __name__ == "__main__":
    main()
