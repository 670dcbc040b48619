"""Makes the embedded data set: a stratified subset of Fashion-MNIST.

    python scripts/make_fashion_mnist_subset.py [--data-dir DIR]

The first 1,000 training images and the first 200 test images of each class, in the order of the
full set, so that the result does not depend on a random generator.
"""

import argparse
import pathlib

import numpy as np

from keras_robust import datasets

TARGET = pathlib.Path(datasets.__file__).parent / "data" / "fashion_mnist_subset.npz"
PER_CLASS = {"train": 1000, "test": 200}


def stratified(split: str, data_dir: str | None) -> tuple[np.ndarray, np.ndarray]:
    pairs = datasets.load("fashion_mnist", split, data_dir=data_dir)
    images, labels = (np.array(values) for values in zip(*pairs, strict=True))
    chosen = np.sort(
        np.concatenate([np.flatnonzero(labels == c)[: PER_CLASS[split]] for c in range(10)])
    )
    return np.round(images[chosen] * 255).astype("uint8"), labels[chosen].astype("uint8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data-dir", default=None, help="folder of TensorFlow Datasets")
    data_dir = parser.parse_args().data_dir
    arrays = {}
    for split in PER_CLASS:
        arrays[f"{split}_images"], arrays[f"{split}_labels"] = stratified(split, data_dir)
    TARGET.parent.mkdir(exist_ok=True)
    np.savez_compressed(TARGET, **arrays)
    print(f"{TARGET}: {TARGET.stat().st_size / 2**20:.2f} MiB")


if __name__ == "__main__":
    main()
