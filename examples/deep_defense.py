"""Fine-tunes an ordinary classifier by Deep Defense, and compares its robustness before and after.

python examples/deep_defense.py
python examples/deep_defense.py --dataset mnist --data-dir DIR
"""

import argparse

import keras

import keras_robust as kr

parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
parser.add_argument("--dataset", default="fashion_mnist_subset", help="name of a data set")
parser.add_argument("--data-dir", default=None, help="folder of TensorFlow Datasets")
parser.add_argument("--epsilon", type=float, default=0.03, help="radius of the attacks")
parser.add_argument("--epochs", type=int, default=5, help="epochs of each of the two trainings")
parser.add_argument("--num-examples", type=int, default=500, help="test images to attack")


def main() -> None:
    args = parser.parse_args()
    keras.utils.set_random_seed(0)
    train, test = (kr.datasets.load(args.dataset, s, args.data_dir) for s in ("train", "test"))
    train, test = train.shuffle(len(train), seed=0).batch(100), test.take(args.num_examples)
    attacks = {
        "FGSM": kr.attacks.FGSM(args.epsilon),
        "PGD-40": kr.attacks.PGD(args.epsilon, num_steps=40, num_restarts=3),
        "Square": kr.attacks.Square(args.epsilon, num_queries=1000),
    }

    model = keras.Sequential([
        keras.Input((28, 28, 1)),
        keras.layers.Flatten(),
        keras.layers.Dense(500, activation="relu"),
        keras.layers.Dense(150, activation="relu"),
        keras.layers.Dense(10),
    ])  # fmt: skip
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(train, epochs=args.epochs, shuffle=False)
    before = kr.evaluate(model, test, attacks=attacks)

    robust = kr.RobustModel(model)
    optimizer = keras.optimizers.SGD(0.005, momentum=0.9, weight_decay=5e-4)
    robust.compile(optimizer, kr.losses.DeepDefense(weight=15.0, c=25.0, d=5.0))
    robust.fit(train, epochs=args.epochs, shuffle=False)
    after = kr.evaluate(model, test, attacks=attacks)
    print(kr.evaluation.comparison_table({"before": before, "Deep Defense": after}))


if __name__ == "__main__":
    main()
