"""Classifies raw pixels by WNLL, with a whole training set as template, beside softmax regression.

    python examples/wnll_raw_pixels.py --data-dir DIR
    python examples/wnll_raw_pixels.py --data-dir DIR --dataset cifar10_jpeg

Table 2 of Wang and Osher, Graph Interpolating Activation Improves Both Natural and Robust
Accuracies in Data-Efficient Deep Learning: MNIST 97.74% by WNLL, 92.65% by softmax. Nothing is
trained for WNLL: the images themselves are the features. The first of WNLL's settings has the time
of the search for the template points' own neighbours in it, which all of them share.
"""

import argparse
import functools
import pathlib
import time
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from records import Records

import keras_robust as kr
from keras_robust.model.arrays import as_arrays

# Neighbours m and n are counted without the point itself.
SETTINGS = {
    "paper's kernel, (30, 15)": {"num_neighbors": 30, "sigma_neighbor": 15},
    "paper's kernel, (15, 8)": {"num_neighbors": 15, "sigma_neighbor": 8},
    "published code: quartic, (14, 7), gamma 1": {
        "num_neighbors": 14, "sigma_neighbor": 7, "kernel": "quartic", "template_weight": 1.0,
    },
}  # fmt: skip


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--dataset", default="mnist")
    parser.add_argument("--data-dir", default=None, help="folder of TensorFlow Datasets")
    parser.add_argument("--num-train", type=int, default=None, help="default: all")
    parser.add_argument("--num-test", type=int, default=None, help="default: all")
    parser.add_argument("--batch-size", type=int, default=10_000)
    parser.add_argument("--epochs", type=int, default=10, help="of softmax regression")
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("wnll_raw_pixels.json"))
    return parser.parse_args()


def flat(dataset: str, split: str, count: int | None, data_dir: str | None) -> tuple:
    x, y = as_arrays(kr.datasets.load(dataset, split, data_dir=data_dir))
    return x.reshape(len(x), -1)[:count].astype("float32"), y[:count]


def softmax_regression(train: tuple, test: tuple, epochs: int) -> float:
    keras.utils.set_random_seed(0)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model = keras.Sequential([keras.Input(train[0].shape[1:]), keras.layers.Dense(10)])
    model.compile("adam", loss, metrics=["accuracy"])
    model.fit(*train, batch_size=128, epochs=epochs, verbose=0)
    return model.evaluate(*test, verbose=0)[1]


def neighbor_distances(features: np.ndarray, num_neighbors: int) -> np.ndarray:
    """The squared distances to each point's nearest others: one search for all settings."""
    index = kr.neighbors.ExactIndex(features)
    batches = np.split(features, range(4096, len(features), 4096))
    bar = keras.utils.Progbar(len(batches), unit_name="batch of template points")
    found = []
    for batch in batches:
        found.append(index.search(batch, num_neighbors + 1)[0][:, 1:])  # The first is itself.
        bar.add(1)
    return np.concatenate(found)


def wnll(
    train: tuple, test: tuple, distances: Callable[[], Any], batch_size: int, settings: dict
) -> float:
    head = kr.layers.WNLLHead(int(train[1].max()) + 1, template_size=len(train[0]), **settings)
    model = keras.Sequential([keras.Input(train[0].shape[1:]), head])
    known = distances()[:, : head.num_neighbors] if head.template.has_reach else None
    head.adapt(*train, distances=known)
    logits = model.predict(test[0], batch_size=batch_size, verbose=2)
    return float(np.mean(logits.argmax(axis=1) == test[1]))


def main() -> None:
    args = parse_arguments()
    train = flat(args.dataset, "train", args.num_train, args.data_dir)
    test = flat(args.dataset, "test", args.num_test, args.data_dir)
    print(f"{args.dataset}: {len(train[0])} template points, {len(test[0])} test images")
    records = Records(args.output)
    start = time.perf_counter()

    @functools.cache
    def distances() -> np.ndarray:
        return neighbor_distances(train[0], 30)

    def measured(name: str, compute: Callable[[], float]) -> None:
        found = records.run(
            f"{args.dataset}, {len(train[0])} template points, {len(test[0])} images, {name}",
            lambda: {"accuracy": compute()},
        )
        print(f"{name:45} {found['accuracy']:7.2%}   {found['seconds']:5.0f} s", flush=True)

    measured("softmax regression", lambda: softmax_regression(train, test, args.epochs))
    for name, settings in SETTINGS.items():
        measured(name, lambda s=settings: wnll(train, test, distances, args.batch_size, s))
    print(f"{time.perf_counter() - start:.0f} s in all")


if __name__ == "__main__":
    main()
