"""Trains with latent disparity on FGSM, and evaluates with FGSM and stronger attacks.

python examples/latent_disparity.py
python examples/latent_disparity.py --dataset fashion_mnist --data-dir DIR
"""

import argparse

import keras

import keras_robust as kr

parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
parser.add_argument("--dataset", default="fashion_mnist_subset", help="name of a data set")
parser.add_argument("--data-dir", default=None, help="folder of TensorFlow Datasets")
parser.add_argument("--epsilon", type=float, default=8 / 255, help="radius in training and attacks")
parser.add_argument("--epochs", type=int, default=5)
parser.add_argument("--num-examples", type=int, default=500, help="test images to attack")


def main() -> None:
    args = parser.parse_args()
    keras.utils.set_random_seed(0)
    train, test = (kr.datasets.load(args.dataset, s, args.data_dir) for s in ("train", "test"))
    train, test = train.shuffle(len(train), seed=0).batch(128), test.take(args.num_examples)

    model = keras.Sequential([
        keras.Input((28, 28, 1)),
        keras.layers.Conv2D(16, 5, strides=2, padding="same", activation="relu", name="first"),
        keras.layers.Conv2D(32, 5, strides=2, padding="same", activation="relu", name="second"),
        keras.layers.Flatten(),
        keras.layers.Dense(100, activation="relu", name="third"),
        keras.layers.Dense(10),
    ])  # fmt: skip
    # The loss attacks the images and compares the layers' outputs for both.
    loss = kr.losses.LatentDisparity(
        kr.attacks.FGSM(args.epsilon), weight=0.25, layers=["first", "second", "third"]
    )
    robust = kr.RobustModel(model)
    robust.compile("adam", loss, metrics=["accuracy"])
    robust.fit(train, epochs=args.epochs, shuffle=False)

    attacks = {
        "FGSM": kr.attacks.FGSM(args.epsilon),
        "PGD-40": kr.attacks.PGD(args.epsilon, num_steps=40, num_restarts=3),
        "AutoAttack": kr.attacks.AutoAttack(args.epsilon, version="fast"),
    }
    kr.evaluate(model, test, attacks=attacks).summary()


if __name__ == "__main__":
    main()
