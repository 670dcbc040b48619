"""Trains tanh features with an angular penalty, without and with adversarial training.

    python examples/tanh_classifier.py
    python examples/tanh_classifier.py --dataset mnist --data-dir DIR --epsilon 0.3

Without adversarial training, saturated features hide the gradient. PGD may then overestimate the
robustness of the model. AutoAttack shows that it is not robust.
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


def make_classifier() -> keras.Model:
    return keras.Sequential([
        keras.Input((28, 28, 1)),
        keras.layers.Conv2D(16, 5, strides=2, padding="same", activation="relu"),
        keras.layers.Conv2D(32, 5, strides=2, padding="same", activation="relu"),
        keras.layers.Flatten(),
        keras.layers.Dense(128),
        kr.layers.TanhClassifier(10),
    ])  # fmt: skip


def main() -> None:
    args = parser.parse_args()
    keras.utils.set_random_seed(0)
    train, test = (kr.datasets.load(args.dataset, s, args.data_dir) for s in ("train", "test"))
    train, test = train.shuffle(len(train), seed=0).batch(128), test.take(args.num_examples)

    natural = make_classifier()
    natural.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    natural.fit(train, epochs=args.epochs, shuffle=False)

    adversarial = kr.RobustModel(make_classifier())
    attack = kr.attacks.PGD(args.epsilon, num_steps=7)
    adversarial.compile("adam", kr.losses.AdversarialTraining(attack))
    adversarial.fit(train, epochs=args.epochs, shuffle=False)

    attacks = {
        "PGD-40": kr.attacks.PGD(args.epsilon, num_steps=40),
        "AutoAttack": kr.attacks.AutoAttack(args.epsilon, version="fast"),
    }
    models = {"natural": natural, "adversarial": adversarial}
    reports = {name: kr.evaluate(model, test, attacks=attacks) for name, model in models.items()}
    print(kr.evaluation.comparison_table(reports))


if __name__ == "__main__":
    main()
