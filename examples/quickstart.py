"""Trains an ordinary and a robust classifier, and compares their robustness.

    python examples/quickstart.py
    python examples/quickstart.py --dataset mnist --data-dir DIR --epsilon 0.3

Prints two tables. Writes `curves.png`, `results.json` and, for each model, a folder with its report
and a sheet of clean images, adversarial images and their differences. With the defaults it takes
less than 4 minutes on 2 CPU cores.
"""

import argparse
import json
import pathlib

import keras
import numpy as np

import keras_robust as kr
from keras_robust.report.plots import require_matplotlib


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--dataset", default="fashion_mnist_subset", help="name of a data set")
    parser.add_argument("--data-dir", default=None, help="folder of TensorFlow Datasets")
    parser.add_argument("--epsilon", type=float, default=0.1, help="radius in training and attacks")
    parser.add_argument("--epochs", type=int, default=15, help="epochs for each model")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--train-examples", type=int, default=None, help="default: all of them")
    parser.add_argument("--num-examples", type=int, default=500, help="test images to attack")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("quickstart_output"))
    return parser.parse_args()


def make_classifier(input_shape: tuple[int, ...], head: keras.layers.Layer) -> keras.Model:
    return keras.Sequential(
        [
            keras.Input(input_shape),
            keras.layers.Conv2D(16, 5, strides=2, padding="same", activation="relu"),
            keras.layers.Conv2D(32, 5, strides=2, padding="same", activation="relu"),
            keras.layers.Flatten(),
            keras.layers.Dense(128),
            *([keras.layers.ReLU()] if isinstance(head, keras.layers.Dense) else []),
            head,
        ]
    )


def main() -> None:
    args = parse_arguments()
    require_matplotlib()
    keras.utils.set_random_seed(args.seed)
    train = kr.datasets.load(args.dataset, "train", data_dir=args.data_dir)
    train = train.take(args.train_examples or len(train))
    test = kr.datasets.load(args.dataset, "test", data_dir=args.data_dir)
    num_classes = 1 + max(int(label) for _, label in test)
    input_shape = np.shape(next(iter(train))[0])
    batches = train.shuffle(len(train), seed=args.seed).batch(args.batch_size)
    watched = test.skip(max(0, len(test) - 200))
    attacked = test.take(args.num_examples)

    softmax = make_classifier(input_shape, keras.layers.Dense(num_classes))
    softmax.compile(
        optimizer="adam",
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    print("\nAn ordinary softmax classifier")
    softmax.fit(batches, epochs=args.epochs, shuffle=False)  # `batches` already shuffles.

    robust = kr.RobustModel(
        make_classifier(input_shape, kr.layers.TanhClassifier(num_classes)), seed=args.seed
    )
    attack = kr.attacks.PGD(epsilon=args.epsilon, num_steps=7)
    robust.compile(
        optimizer="adam", loss=kr.losses.AdversarialTraining(attack), metrics=["accuracy"]
    )
    print("\nA robust classifier: adversarial training, tanh features, angular penalty")
    watch = kr.callbacks.RobustAccuracy(attack, watched)
    robust.fit(batches, epochs=args.epochs, shuffle=False, callbacks=[watch])

    attacks = {
        "FGSM": kr.attacks.FGSM(epsilon=args.epsilon),
        "PGD-20": kr.attacks.PGD(epsilon=args.epsilon, num_steps=20),
        "PGD-100, 3 restarts": kr.attacks.PGD(args.epsilon, num_steps=100, num_restarts=3),
    }
    models = {"softmax": softmax, "robust": robust}
    reports, curves = {}, {}
    factors = (0, 0.25, 0.5, 1, 1.5, 2, 3, 5)
    epsilons = sorted({round(min(factor * args.epsilon, 1.0), 6) for factor in factors})
    for name, model in models.items():
        print(f"\nAttacks on the {name} model")
        reports[name] = kr.evaluate(model, attacked, attacks=attacks, output=args.output / name)
        print("Accuracy against epsilon")
        curves[name] = kr.evaluation.robustness_curve(
            model, attacked, attack=attacks["PGD-20"], epsilons=epsilons
        )

    print(f"\nAccuracy on {len(attacked)} test images at epsilon {args.epsilon:g}, L-infinity\n")
    print(kr.evaluation.comparison_table(reports))
    print("\nAccuracy under PGD-20 against epsilon\n")
    print("epsilon" + "".join(f"{epsilon:>8g}" for epsilon in epsilons))
    for name, curve in curves.items():
        print(f"{name:7}" + "".join(f"{accuracy:>8.1%}" for accuracy in curve.values()))
    kr.evaluation.plot_curves(
        curves,
        args.output / "curves.png",
        chance=1 / num_classes,
        training_epsilon=args.epsilon,
        title=f"{args.dataset}, PGD-20",
    )
    results = {"arguments": vars(args) | {"output": str(args.output)}}
    results["reports"] = {name: report.to_dict() for name, report in reports.items()}
    results["curves"] = {name: list(curve.items()) for name, curve in curves.items()}
    (args.output / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    print(f"\nPlots and figures are in {args.output}/")


if __name__ == "__main__":
    main()
