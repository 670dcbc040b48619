"""Table 1 of the Deep Defense paper on MNIST, and what stronger attacks leave of it.

    python examples/deep_defense_mnist.py --data-dir DIR
    python examples/deep_defense_mnist.py --data-dir DIR --network lenet --learning-rate 5e-3
    python examples/deep_defense_mnist.py --data-dir DIR --epochs 1 --num-train 6000

A reference network is trained, then fine-tuned for some epochs by each method, with the paper's
settings: SGD at 5e-4 with momentum 0.9 and weight decay 5e-4, batches of 100, the rate halved for
the last fifth. Clean accuracy, rho_2 (DeepFool with 5 steps) and accuracy under FGSM at 0.2, 0.5
and 1.0 times epsilon_ref are the paper's columns; epsilon_ref is where FGSM fools the Deep Defense
network on half of the images. The further columns are the worst case at the same radii, over FGSM,
PGD with restarts by two losses, and Square, and the median L2 distance that Carlini and Wagner's
attack needs, both on some of the test images, taken at equal intervals. As in the paper FGSM's
images are not clipped, so that they leave [0, 1], and neither are the worst case's; C&W's are.

`--learning-rate 5e-3` moves these networks about as far as the paper's rate has moved theirs.
`--input-scale S` has the network begin with S (x - mean). How much a learning rate moves it depends
on S: the paper names the rate, but not the scale of its images.

Interrupted, the same command continues: networks and results are kept in `--output`.
"""

import argparse
import pathlib
import warnings
from typing import Any

import keras
import numpy as np
from records import Records

import keras_robust as kr
from keras_robust.model.arrays import as_arrays

L = keras.layers
CROSS_ENTROPY = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
REFERENCE_EPOCHS = {"mlp": 6, "lenet": 4}
SHARES = (0.2, 0.5, 1.0)
# The paper's attacks do not clip: bounds so wide that nothing reaches them.
UNCLIPPED = (-10.0, 11.0)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data-dir", default=None, help="folder of TensorFlow Datasets")
    parser.add_argument("--dataset", default="mnist")
    parser.add_argument("--network", choices=["mlp", "lenet"], default="mlp")
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--epochs", type=int, default=5, help="of fine-tuning")
    parser.add_argument("--learning-rate", type=float, default=5e-4, help="of fine-tuning")
    parser.add_argument("--input-scale", type=float, default=None, help="default: x as it is")
    parser.add_argument("--reference-epochs", type=int, default=None)
    parser.add_argument("--num-train", type=int, default=60_000)
    parser.add_argument("--num-test", type=int, default=10_000)
    parser.add_argument("--num-attacked", type=int, default=1000, help="in the worst case")
    parser.add_argument("--num-carlini", type=int, default=200, help="by Carlini and Wagner")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--epsilon-ref", type=float, default=None, help="default: from the Deep Defense network"
    )
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("deep_defense_mnist"))
    return parser.parse_args()


def mlp(constraint: Any = None) -> list[Any]:
    return [
        L.Flatten(),
        L.Dense(500, activation="relu", kernel_constraint=constraint),
        L.Dense(150, activation="relu", kernel_constraint=constraint),
        L.Dense(10, kernel_constraint=constraint),
    ]


def lenet(constraint: Any = None) -> list[Any]:
    return [
        L.Conv2D(20, 5, kernel_constraint=constraint), L.MaxPooling2D(),
        L.Conv2D(50, 5, kernel_constraint=constraint), L.MaxPooling2D(),
        L.Flatten(),
        L.Dense(500, activation="relu", kernel_constraint=constraint),
        L.Dense(10, kernel_constraint=constraint),
    ]  # fmt: skip


def network(args: argparse.Namespace, mean: np.ndarray, constraint: Any = None) -> keras.Model:
    layers = {"mlp": mlp, "lenet": lenet}[args.network](constraint)
    if args.input_scale is not None:
        variance = np.full_like(mean, args.input_scale**-2)
        layers.insert(0, L.Normalization(axis=(1, 2, 3), mean=mean, variance=variance))
    return keras.Sequential([keras.Input((28, 28, 1)), *layers])


def deep_defense(mean: np.ndarray) -> Any:
    return kr.losses.DeepDefense(weight=15.0, c=25.0, d=5.0, mean=mean)


def fgs_training() -> Any:
    """Half of the loss on clean images, half on those of FGSM."""
    adversarial = kr.losses.AdversarialTraining(kr.attacks.FGSM(epsilon=0.1))
    return kr.losses.Sum([CROSS_ENTROPY, adversarial], weights=[0.5, 0.5])


# What each method fine-tunes with: a loss, given the mean of the training images.
METHODS = {
    "Reference": None,
    "Clean": lambda mean: CROSS_ENTROPY,
    "Deep Defense": deep_defense,
    "Adv. Train I": lambda mean: CROSS_ENTROPY,
    "FGS training": lambda mean: fgs_training(),
    "Deep Defense + FGS": lambda mean: deep_defense(mean) + fgs_training(),
    "Parseval": lambda mean: CROSS_ENTROPY,
}


def train_reference(args: argparse.Namespace, train: tuple, test: tuple) -> keras.Model:
    """Adam, whose rate falls to 0 by a cosine, for no longer than the paper's accuracy takes."""
    epochs = args.reference_epochs or REFERENCE_EPOCHS[args.network]
    model = network(args, train[0].mean(axis=0))
    steps = -(-len(train[0]) // 100) * epochs
    optimizer = keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(1e-3, steps))
    model.compile(optimizer, CROSS_ENTROPY, metrics=["accuracy"])
    model.fit(*train, batch_size=100, epochs=epochs, validation_data=test, verbose=2)
    return model


def fine_tune(
    args: argparse.Namespace, method: str, reference: keras.Model, train: tuple, test: tuple
) -> keras.Model:
    """The method's network, from the reference."""
    mean = train[0].mean(axis=0)
    constraint = kr.constraints.ParsevalTightness(beta=1e-4) if method == "Parseval" else None
    model = network(args, mean, constraint)
    model.set_weights(reference.get_weights())
    x, y = train
    if method == "Adv. Train I":
        x_adv = deepfool_set(args, reference, x, y)
        x, y = np.concatenate([x, x_adv]), np.concatenate([y, y])
    steps = -(-len(x) // 100) * args.epochs
    rate = keras.optimizers.schedules.PiecewiseConstantDecay(
        [int(0.8 * steps)], [args.learning_rate, args.learning_rate / 2]
    )
    robust = kr.RobustModel(model, seed=args.seed)
    robust.compile(
        keras.optimizers.SGD(rate, momentum=0.9, weight_decay=5e-4), METHODS[method](mean),
        metrics=["accuracy"],
    )  # fmt: skip
    backup = keras.callbacks.BackupAndRestore(args.output / f"{key(args, method)}-backup")
    robust.fit(
        x, y, batch_size=100, epochs=args.epochs, validation_data=test, callbacks=[backup],
        verbose=2,
    )  # fmt: skip
    return model


def deepfool_set(
    args: argparse.Namespace, reference: keras.Model, x: np.ndarray, y: np.ndarray
) -> np.ndarray:
    """DeepFool's images of the whole training set, made once, on the reference."""
    path = args.output / f"{key(args, 'Reference')}-deepfool.npy"
    if not path.exists():
        attack = kr.attacks.DeepFool(num_steps=50)
        parts = [
            attack(reference, x[i : i + 1000], y[i : i + 1000], seed=i)
            for i in range(0, len(x), 1000)
        ]
        np.save(path, np.concatenate([keras.ops.convert_to_numpy(part) for part in parts]))
    return np.load(path)


def key(args: argparse.Namespace, method: str) -> str:
    epochs = f"{args.epochs} epochs at {args.learning_rate}" if METHODS[method] else "trained"
    other = "" if args.dataset == "mnist" else f", {args.dataset}"
    if args.reference_epochs is not None:
        other += f", reference trained for {args.reference_epochs}"
    if args.input_scale is not None:
        other += f", inputs times {args.input_scale:g}"
    return f"{args.network}, {method}, {epochs}, {args.num_train} images, seed {args.seed}{other}"


def saved_model(
    args: argparse.Namespace, method: str, reference: Any, train: tuple, test: tuple
) -> keras.Model:
    """The method's network, from its file if it was trained before."""
    path = args.output / f"{key(args, method)}.keras"
    if path.exists():
        return keras.models.load_model(path)
    print(f"\n{method}", flush=True)
    keras.utils.set_random_seed(args.seed)
    if method == "Reference":
        model = train_reference(args, train, test)
    else:
        model = fine_tune(args, method, reference, train, test)
    model.save(path)
    return model


def under_fgsm(model: keras.Model, x: Any, y: Any, epsilon: float) -> float:
    attack = kr.attacks.FGSM(epsilon=epsilon, bounds=UNCLIPPED)
    report = kr.evaluate(model, x, y, {"FGSM": attack}, checks=False, batch_size=500, verbose=0)
    return report.accuracy("FGSM")


def clean_and_rho(model: keras.Model, x: Any, y: Any, mean: np.ndarray) -> dict[str, float]:
    predictions = model.predict(x, batch_size=500, verbose=0).argmax(axis=1)
    attack = kr.attacks.DeepFool(num_steps=5, overshoot=0.02, bounds=UNCLIPPED)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "DeepFool has failed")  # 5 steps are few: the paper's.
        rho = kr.evaluation.rho(model, x, attack=attack, mean=mean, batch_size=500, verbose=0)
    return {"accuracy": float((predictions == y).mean()), "rho_2": rho}


def at_radii(
    args: argparse.Namespace, model: keras.Model, x: Any, y: Any, reference_epsilon: float
) -> dict[str, float]:
    found = {}
    some = slice(None, None, max(1, len(x) // args.num_attacked))
    for share in SHARES:
        epsilon = share * reference_epsilon
        found[f"FGSM {share}"] = under_fgsm(model, x, y, epsilon)
        budget = {"epsilon": epsilon, "bounds": UNCLIPPED}
        pgd = {"num_steps": 40, "num_restarts": 5, **budget}
        attacks = {
            "FGSM": kr.attacks.FGSM(**budget),
            "PGD": kr.attacks.PGD(**pgd),
            "PGD, margin": kr.attacks.PGD(**pgd, loss="margin"),
            "Square": kr.attacks.Square(num_queries=1000, **budget),
        }
        report = kr.evaluate(
            model, x[some], y[some], attacks, checks=False, worst_case_only=True, batch_size=500,
            verbose=0,
        )  # fmt: skip
        found[f"worst case {share}"] = report.accuracy("worst case")
    some = slice(None, None, max(1, len(x) // args.num_carlini))
    attack = kr.attacks.CarliniWagnerL2(num_steps=300, binary_search_steps=5, learning_rate=0.02)
    result = attack.run(model, x[some], y[some], seed=0)
    found["C&W L2"] = float(np.median(np.where(result.success, result.norms["l2"], np.inf)))
    return found


def table(rows: dict[str, dict[str, float]]) -> str:
    columns = [
        name for name, value in next(iter(rows.values())).items() if isinstance(value, float)
    ]
    lines = [f"{'':20}" + "".join(f"{name:>16}" for name in columns)]
    for method, row in rows.items():
        cells = [
            f"{row[name]:16.3f}" if name in ("rho_2", "C&W L2") else f"{row[name]:16.2%}"
            for name in columns
        ]
        lines.append(f"{method:20}" + "".join(cells))
    return "\n".join(lines)


def found_epsilon(
    args: argparse.Namespace, records: Records, models: dict, reference: Any, train: Any, test: Any
) -> float:
    """The radius at which FGSM fools the Deep Defense network on half of the images."""
    defended = models.get("Deep Defense") or saved_model(
        args, "Deep Defense", reference, train, test
    )
    attack = kr.attacks.FGSM(epsilon=0.1, bounds=UNCLIPPED)
    return records.run(
        f"epsilon_ref, {key(args, 'Deep Defense')}, {args.num_test} test images",
        lambda: {
            "epsilon": kr.evaluation.reference_epsilon(
                defended, *test, attack=attack, max_epsilon=1.0, batch_size=500, verbose=0
            )
        },
    )["epsilon"]


def main() -> None:
    args = parse_arguments()
    args.output.mkdir(parents=True, exist_ok=True)
    (x_train, y_train), (x, y) = (
        as_arrays(kr.datasets.load(args.dataset, split, data_dir=args.data_dir))
        for split in ("train", "test")
    )
    train = x_train[: args.num_train], y_train[: args.num_train]
    test = x[: args.num_test], y[: args.num_test]
    mean = train[0].mean(axis=0)
    records = Records(args.output / "results.json")
    reference = saved_model(args, "Reference", None, train, test)
    models = {method: saved_model(args, method, reference, train, test) for method in args.methods}
    epsilon = args.epsilon_ref or found_epsilon(args, records, models, reference, train, test)
    print(f"\n{args.network}: epsilon_ref = {epsilon:.4f}", flush=True)
    rows = {}
    for method, model in models.items():
        rows[method] = records.run(
            f"{key(args, method)}, {args.num_test} test images, {args.num_attacked} attacked, "
            f"{args.num_carlini} by C&W, epsilon_ref {epsilon:.4f}",
            lambda model=model: {
                **clean_and_rho(model, *test, mean),
                **at_radii(args, model, *test, epsilon),
            },
        )
        print(table({method: rows[method]}), flush=True)
    print("\n" + table(rows))


if __name__ == "__main__":
    main()
