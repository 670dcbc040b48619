"""Certifies a classifier by randomized smoothing, attacks it, and prints both results.

    python examples/certify.py

The classifier is trained on noisy images, and the smoothed classifier is the vote over noisy
copies. More noise costs accuracy and certifies larger L2 radii, as Cohen et al. (2019) found.
"""

import argparse
import pathlib

import keras

import keras_robust as kr

RADII = [0.0, 0.25, 0.5, 0.75, 1.0, 1.25]
parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
parser.add_argument("--dataset", default="fashion_mnist_subset", help="name of a data set")
parser.add_argument("--data-dir", default=None, help="folder of TensorFlow Datasets")
parser.add_argument("--stddevs", type=float, nargs="+", default=[0.25, 0.5], help="of the noise")
parser.add_argument("--epochs", type=int, default=5)
parser.add_argument("--num-examples", type=int, default=100, help="test images to certify")
parser.add_argument("--num-samples", type=int, default=10_000, help="votes on each image")
parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("certify_output"))


def make_classifier(stddev: float) -> keras.Model:
    layers = [
        keras.Input((28, 28, 1)),
        keras.layers.GaussianNoise(stddev),  # Only active in training.
        keras.layers.Conv2D(16, 5, strides=2, padding="same", activation="relu"),
        keras.layers.Conv2D(32, 5, strides=2, padding="same", activation="relu"),
        keras.layers.Flatten(),
        keras.layers.Dense(10),
    ]
    return keras.Sequential(layers)


def main() -> None:
    args = parser.parse_args()
    train, test = (kr.datasets.load(args.dataset, s, args.data_dir) for s in ("train", "test"))
    train, test = train.shuffle(len(train), seed=0).batch(128), test.take(args.num_examples)
    attack = kr.attacks.PGD(1.0, norm="l2", num_samples=8, objective=kr.evaluation.noisy_logits)
    attacks = [attack.replace(epsilon=radius) for radius in RADII[1:]]
    for stddev in args.stddevs:
        keras.utils.set_random_seed(0)
        model, output = make_classifier(stddev), args.output / f"stddev_{stddev:g}"
        model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        model.fit(train, epochs=args.epochs, shuffle=False)
        options = {"stddev": stddev, "num_samples": args.num_samples, "batch_size": 1000}
        certificate = kr.evaluation.certify(model, test, output=output, **options)
        options = {"certificate": certificate, "checks": False, "output": output}
        smoothed = kr.evaluation.SmoothedClassifier(model, stddev)
        kr.evaluate(smoothed, test, attacks=attacks, **options).summary()
        print("radius   ", *(f"{radius:6g}" for radius in RADII))
        print("certified", *(f"{share:6.1%}" for share in certificate.curve(RADII).values()))


if __name__ == "__main__":
    main()
