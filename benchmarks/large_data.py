"""Measures the peak memory of `kr.evaluate` on data sets of up to 100,000 images.

    python benchmarks/large_data.py
    python benchmarks/large_data.py --num-images 2000 20000 --forms PyDataset

Each evaluation runs in a separate process. A `PyDataset` and, on TensorFlow, a
`tf.data.Dataset.from_generator` generate its images of 224 x 224 pixels on demand. The model costs
almost nothing, and the attack is FGSM, so that 100,000 images take minutes. `evaluate` runs with
its defaults, including its checks. In float32, one image takes 602,112 bytes, and 100,000 images
take 60 GB.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile
import time
from typing import Any

import harness
import keras
import numpy as np
from memory import frugal, peak_bytes

import keras_robust as kr

SHAPE = (224, 224, 3)
FORMS = ["PyDataset"]
if keras.backend.backend() == "tensorflow":
    FORMS.append("tf.data")


class Colours(keras.utils.PyDataset):
    """Images of one colour with grey noise. The class is the largest of red, green and blue."""

    def __init__(self, num_images: int, batch_size: int) -> None:
        super().__init__()
        self.num_images, self.batch_size = num_images, batch_size
        grey = np.random.default_rng(0).random((*SHAPE[:2], 1), "float32")
        self.noise = np.float32(0.5) * np.tile(grey, (1, 1, 3))

    def __len__(self) -> int:
        return -(-self.num_images // self.batch_size)

    def __getitem__(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        count = min(self.batch_size, self.num_images - number * self.batch_size)
        colours = np.random.default_rng(number).random((count, 3), "float32") / 2
        return colours[:, None, None] + self.noise, colours.argmax(1)


def make_data(form: str, num_images: int, batch_size: int) -> Any:
    data = Colours(num_images, batch_size)
    if form == "PyDataset":
        return data
    import tensorflow as tf

    signature = tf.TensorSpec((None, *SHAPE), "float32"), tf.TensorSpec((None,), "int64")
    return tf.data.Dataset.from_generator(
        lambda: map(data.__getitem__, range(len(data))), output_signature=signature
    )


def make_model() -> keras.Model:
    """Returns a classifier whose logits are proportional to the mean red, green and blue."""
    dense = keras.layers.Dense(3, use_bias=False)
    layers = [keras.layers.AveragePooling2D(32), keras.layers.Flatten(), dense]
    model = keras.Sequential([keras.Input(SHAPE), *layers])
    dense.set_weights([np.tile(np.eye(3, dtype="float32"), (49, 1))])
    return model


def evaluate(form: str, num_images: int, batch_size: int) -> dict[str, Any]:
    """Evaluates in this process."""
    data, model, before = make_data(form, num_images, batch_size), make_model(), peak_bytes()
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as output:
        attack = kr.attacks.FGSM(8 / 255)
        report = kr.evaluate(
            model, data, attacks=attack, batch_size=batch_size, output=output, verbose=2
        )
    return {
        "seconds": time.perf_counter() - start,
        "peak_bytes": peak_bytes(),
        "peak_bytes_before": before,
        "clean_accuracy": report.accuracy("clean"),
        "robust_accuracy": report.accuracy("worst case"),
    }


def in_own_process(form: str, num_images: int, batch_size: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder) / "figures.json"
        command = [sys.executable, __file__, "--forms", form, "--num-images", str(num_images)]
        command += ["--batch-size", str(batch_size), "--write", str(file)]
        subprocess.run(command, env=frugal(), check=True)
        return json.loads(file.read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--num-images", type=int, nargs="+", default=[2_000, 20_000, 100_000])
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=FORMS)
    parser.add_argument("--batch-size", type=int, default=100)
    parser.add_argument("--output", type=pathlib.Path, default=harness.RESULTS)
    parser.add_argument("--write", type=pathlib.Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.write is not None:
        figures = evaluate(args.forms[0], args.num_images[0], args.batch_size)
        args.write.write_text(json.dumps(figures))
        return
    results = harness.Results("large_data", args.output)
    for form in args.forms:
        for num_images in args.num_images:
            figures = in_own_process(form, num_images, args.batch_size)
            results.add(f"{form}, {num_images} images", figures)
            print(f"{form}, {num_images:,} images: {figures}", flush=True)
    print(results.path)


if __name__ == "__main__":
    main()
