"""Shows the published attack on a WNLL head beside the worst case over attacks adapted to it.

    python examples/wnll_robustness.py --data-dir DIR
    python examples/wnll_robustness.py --dataset fashion_mnist_subset --epochs 4

Section 4.3 of Wang and Osher in reduced form: a small CNN, trained on clean images and by PGD,
with softmax and with WNLL on the same features; batches of 500 images with a template of 500.
The published attack takes its gradient from the linear branch ("straight-through"). Results are
written as they come, and a case that is there already is not repeated.
"""

import argparse
import pathlib
from typing import Any

import keras
import numpy as np
from records import Records

import keras_robust as kr
from keras_robust.model.arrays import as_arrays
from keras_robust.report.plots import require_matplotlib

L = keras.layers
HEADS = ("softmax", "WNLL")
PUBLISHED = "straight-through (published)"


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--dataset", default="mnist")
    parser.add_argument("--data-dir", default=None, help="folder of TensorFlow Datasets")
    parser.add_argument("--num-examples", type=int, default=500)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--epsilon", type=float, default=0.3, help="radius trained at")
    parser.add_argument("--num-queries", type=int, default=500, help="of Square")
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("wnll_robustness"))
    return parser.parse_args()


def classifier() -> keras.Model:
    keras.utils.set_random_seed(0)
    return keras.Sequential([
        keras.Input((28, 28, 1)),
        L.Conv2D(32, 3, strides=2, activation="relu"),
        L.Conv2D(64, 3, strides=2, activation="relu"),
        L.Flatten(),
        kr.layers.WNLLHead(10, units=200, template_size=500),
    ])  # fmt: skip


def trained(train: tuple, epochs: int, epsilon: float | None) -> keras.Model:
    """Trained with the linear branch, on clean images or on PGD's.

    PGD's radius grows to epsilon from epoch to epoch: at 0.3 from the start, nothing is learnt.
    """
    model = classifier()
    if epsilon is None:
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile("adam", loss)
        model.fit(*train, batch_size=128, epochs=epochs, verbose=2)
    else:
        robust = kr.RobustModel(model)
        for epoch in range(epochs):
            attack = kr.attacks.PGD(epsilon * (epoch + 1) / epochs, num_steps=7)
            loss = kr.losses.AdversarialTraining(attack)
            robust.compile(optimizer="adam", loss=loss, metrics=["accuracy"])
            robust.fit(*train, batch_size=128, verbose=2)
    kr.training.adapt_template(model, *train)
    return model


def attacks(epsilon: float, num_queries: int, is_wnll: bool) -> dict[str, kr.attacks.Attack]:
    def pgd(loss: str, surrogate: str | None = None) -> kr.attacks.Attack:
        objective = surrogate and kr.attacks.WNLLSurrogate(surrogate)
        return kr.attacks.PGD(epsilon, num_steps=20, loss=loss, objective=objective)

    square = {"Square": kr.attacks.Square(epsilon, num_queries=num_queries)}
    if not is_wnll:
        return {"PGD": pgd("ce"), "PGD, margin": pgd("margin"), **square}
    return {
        PUBLISHED: pgd("ce", "straight_through"),
        "linear branch transferred": pgd("ce", "linear"),
        "exact, cross-entropy": pgd("ce", "exact"),
        "exact, margin": pgd("margin", "exact"),
        "soft neighbours": pgd("margin", "soft_neighbors"),
        **square,
    }


def evaluated(
    args: argparse.Namespace, model: keras.Model, head: str, test: tuple, radius: float
) -> dict[str, float]:
    model.layers[-1].phase = "linear" if head == "softmax" else "wnll"
    report = kr.evaluate(
        model, *test, attacks(radius, args.num_queries, head == "WNLL"), batch_size=500,
        checks=False, verbose=0,
    )  # fmt: skip
    return {row.name: row.accuracy for row in report.rows}


def plot(results: dict[str, Any], path: pathlib.Path) -> None:
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(results), figsize=(5.5 * len(results), 4), sharey=True)
    for axis, (training, by_head) in zip(np.atleast_1d(axes), results.items(), strict=True):
        for head, by_epsilon in by_head.items():
            radii = [float(epsilon) for epsilon in by_epsilon]
            for name, style in [(PUBLISHED, "--"), ("PGD", "--"), ("worst case", "-")]:
                rows = [row[name] for row in by_epsilon.values() if name in row]
                if rows:
                    color = "tab:blue" if head == "softmax" else "tab:orange"
                    clean = next(iter(by_epsilon.values()))["clean"]
                    axis.plot([0, *radii], [clean, *rows], style, marker="o", color=color,
                              label=f"{head}: {name}")  # fmt: skip
        axis.set(title=training, xlabel="epsilon (L-inf)", ylim=(0, 1.02))
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    np.atleast_1d(axes)[0].set_ylabel("accuracy")
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main() -> None:
    args = parse_arguments()
    require_matplotlib()
    splits = (kr.datasets.load(args.dataset, s, data_dir=args.data_dir) for s in ("train", "test"))
    train, test = (as_arrays(split) for split in splits)
    test = tuple(part[: args.num_examples] for part in test)
    args.output.mkdir(parents=True, exist_ok=True)
    cases = [
        ("trained on clean images", None, [0.05, 0.1, 0.15]),
        (f"trained by PGD at {args.epsilon}", args.epsilon, [0.1, 0.2, args.epsilon]),
    ]
    records = Records(args.output / "results.json")

    def key(training: str, head: str, radius: float) -> str:
        return f"{args.dataset}, {training}, {head}, epsilon {radius}"

    results: dict[str, Any] = {}
    for training, epsilon, radii in cases:
        wanted = [key(training, head, radius) for head in HEADS for radius in radii]
        model = None
        if not all(name in records.runs for name in wanted):
            model = trained(train, args.epochs, epsilon)
        for head in HEADS:
            rows = results.setdefault(training, {}).setdefault(head, {})
            for radius in radii:
                found = records.run(
                    key(training, head, radius),
                    lambda head=head, radius=radius, model=model: evaluated(
                        args, model, head, test, radius
                    ),
                )
                rows[str(radius)] = {k: v for k, v in found.items() if isinstance(v, float)}
                print(f"\n{training}, {head}, epsilon {radius}")
                for name, value in rows[str(radius)].items():
                    print(f"  {name:30} {value:6.1%}", flush=True)
    plot(results, args.output / "robustness.png")
    print(f"\n{args.output}")


if __name__ == "__main__":
    main()
