"""Trains a WNLL head in place of softmax, end to end, and attacks it by every surrogate gradient.

python examples/wnll_head.py
python examples/wnll_head.py --dataset mnist --data-dir DIR
"""

import argparse

import keras

import keras_robust as kr

parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
parser.add_argument("--dataset", default="fashion_mnist_subset", help="name of a data set")
parser.add_argument("--data-dir", default=None, help="folder of TensorFlow Datasets")
parser.add_argument("--epsilon", type=float, default=0.1, help="radius in training and attacks")
parser.add_argument("--epochs", type=int, default=5)
parser.add_argument("--num-examples", type=int, default=500, help="test images to attack")


def main() -> None:
    args = parser.parse_args()
    keras.utils.set_random_seed(0)
    train, test = (kr.datasets.load(args.dataset, s, args.data_dir) for s in ("train", "test"))
    train, test = train.shuffle(len(train), seed=0).batch(300), test.take(args.num_examples)

    model = keras.Sequential([
        keras.Input((28, 28, 1)),
        keras.layers.Conv2D(16, 5, strides=2, padding="same", activation="relu"),
        keras.layers.Conv2D(32, 5, strides=2, padding="same", activation="relu"),
        keras.layers.Flatten(),
        keras.layers.Dense(100),
        kr.layers.WNLLHead(10, template_size=500),
    ])  # fmt: skip
    attack = kr.attacks.PGD(args.epsilon, num_steps=5)
    robust = kr.RobustModel(model)
    robust.compile("adam", kr.losses.GraphInterpolation(attack=attack), metrics=["accuracy"])
    robust.fit(train, epochs=args.epochs)

    # Classifies each image separately. Otherwise predictions depend on the batch.
    model.layers[-1].joint = False
    surrogates = ("straight_through", "linear", "exact", "soft_neighbors")
    attacks = {
        surrogate: kr.attacks.PGD(
            args.epsilon, num_steps=40, loss="margin", objective=kr.attacks.WNLLSurrogate(surrogate)
        )
        for surrogate in surrogates
    }
    attacks["Square"] = kr.attacks.Square(args.epsilon, num_queries=1000)
    kr.evaluate(model, test, attacks=attacks).summary()


if __name__ == "__main__":
    main()
