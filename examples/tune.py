"""Tunes the weight of a defence with KerasTuner for robust accuracy.

    python examples/tune.py --defence trades
    python examples/tune.py --defence fisher --trials 12 --search bayesian
    python examples/tune.py --defence mart --dataset mnist --data-dir DIR --epsilon 0.3

Each trial trains a small convolutional network with a different weight. Its objective is
`val_robust_accuracy`, the accuracy of its best epoch under PGD-20, on images that are held out of
the training set. Prints a table of the trials, and writes `trials.json` and `tuning.png` to a
folder named after the defence, where KerasTuner also saves the trials. If it is killed, run it
again with the same arguments: it resumes at the interrupted trial. `--trials` may then be larger.

A defence may improve `val_robust_accuracy` only because it hides its gradients. Evaluate the best
model with `kr.evaluate` and several kinds of attacks.
"""

import argparse
import json
import pathlib
import shlex
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import numpy as np

import keras_robust as kr
from keras_robust import backend
from keras_robust.model.arrays import as_arrays
from keras_robust.report.plots import require_matplotlib

try:
    import keras_tuner
except ModuleNotFoundError as error:
    if error.name != "keras_tuner":
        raise
    raise ImportError(
        "Tuning needs KerasTuner. Install it with the extra `tuner`: "
        "`pip install 'keras-robust[tuner]'`."
    ) from error

L = keras.layers
CROSS_ENTROPY = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


class Defence(NamedTuple):
    """A defence: the search range of its weight, and the parts of the model that it changes.

    `build(weight, attack)` returns a dictionary with any of `loss`, `head` (a function of the
    number of classes) and `constraint` (of the hidden kernels). `callbacks` are functions that
    return a callback for the training images and labels.
    """

    low: float
    high: float
    build: Callable[[float, kr.attacks.Attack], dict[str, Any]]
    callbacks: tuple[Callable[..., keras.callbacks.Callback], ...] = ()


def mixed(weight: float, attack: kr.attacks.Attack) -> dict[str, Any]:
    adversarial = kr.losses.AdversarialTraining(attack)
    return {"loss": kr.losses.Sum([CROSS_ENTROPY, adversarial], weights=[1 - weight, weight])}


def wnll(weight: float, attack: kr.attacks.Attack) -> dict[str, Any]:
    return {
        "loss": kr.losses.GraphInterpolation(linear_weight=weight),
        "head": lambda num_classes: kr.layers.WNLLHead(num_classes, template_size=500),
    }


DEFENCES = {
    "adversarial": Defence(0.01, 1.0, mixed),
    "angular": Defence(
        0.1, 1000, lambda weight, attack: {
            "head": lambda num_classes: kr.layers.TanhClassifier(num_classes, penalty=weight)
        },
    ),
    "deep-defense": Defence(
        0.3, 100, lambda weight, attack: {"loss": kr.losses.DeepDefense(weight)}
    ),
    "fisher": Defence(
        1e-4, 0.3, lambda weight, attack: {"loss": kr.losses.FisherInformation(weight)}
    ),
    "latent-disparity": Defence(
        0.01, 0.99, lambda weight, attack: {"loss": kr.losses.LatentDisparity(attack, weight)}
    ),
    "mart": Defence(0.3, 30, lambda weight, attack: {"loss": kr.losses.MART(attack, beta=weight)}),
    "parseval": Defence(
        1e-4, 0.1, lambda weight, attack: {"constraint": kr.constraints.ParsevalTightness(weight)}
    ),
    "stability": Defence(
        0.01, 30, lambda weight, attack: {
            "loss": kr.losses.StabilityTraining(weight, stddev=0.2)
        },
    ),
    "trades": Defence(
        0.3, 30, lambda weight, attack: {"loss": kr.losses.TRADES(attack, beta=weight)}
    ),
    "wnll": Defence(0.01, 10, wnll, callbacks=(kr.callbacks.TemplateUpdate,)),
}  # fmt: skip


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--defence", choices=list(DEFENCES), default="trades")
    parser.add_argument(
        "--low", type=float, default=None, help="smallest weight; default: per defence"
    )
    parser.add_argument(
        "--high", type=float, default=None, help="largest weight; default: per defence"
    )
    parser.add_argument("--trials", type=int, default=8)
    parser.add_argument("--search", choices=("random", "bayesian"), default="random")
    parser.add_argument("--dataset", default="fashion_mnist_subset", help="name of a data set")
    parser.add_argument("--data-dir", default=None, help="folder of TensorFlow Datasets")
    parser.add_argument("--epsilon", type=float, default=0.1, help="radius in training and attacks")
    parser.add_argument("--epochs", type=int, default=8, help="epochs for each trial")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--train-examples", type=int, default=None, help="default: all of them")
    parser.add_argument("--num-examples", type=int, default=300, help="validation images, attacked")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("tune_output"))
    return parser.parse_args()


def make_classifier(
    input_shape: tuple[int, ...],
    num_classes: int,
    head: Callable[[int], Any] = L.Dense,
    constraint: Any = None,
) -> keras.Model:
    def convolution(filters: int) -> Any:
        return L.Conv2D(
            filters, 5, strides=2, padding="same", activation="relu", kernel_constraint=constraint
        )

    return keras.Sequential(
        [
            keras.Input(input_shape),
            convolution(16),
            convolution(32),
            L.Flatten(),
            L.Dense(128, kernel_constraint=constraint),
            *([L.ReLU()] if head is L.Dense else []),
            head(num_classes),
        ]
    )


def refuse_other_arguments(path: pathlib.Path, arguments: dict[str, Any]) -> None:
    """Raises an error if the folder has trials with other settings, which cannot be compared."""
    arguments = {k: v for k, v in arguments.items() if k not in ("output", "trials", "data_dir")}
    arguments["backend"] = keras.backend.backend()
    if path.exists():
        before = json.loads(path.read_text())
        names = sorted(name for name in arguments if before.get(name) != arguments[name])
        if names:
            raise SystemExit(
                f"{path.parent} holds trials of other settings ({', '.join(names)}): choose "
                "another --output, or remove it."
            )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(arguments, indent=2) + "\n")


def table_of(trials: list[dict[str, float]]) -> str:
    lines = [f"{'weight':>10}{'val_robust_accuracy':>22}{'val_accuracy':>15}"]
    for trial in trials:
        lines.append(
            f"{trial['weight']:>10.4g}{trial['val_robust_accuracy']:>22.1%}"
            f"{trial['val_accuracy']:>15.1%}"
        )
    return "\n".join(lines)


def main() -> None:
    args = parse_arguments()
    require_matplotlib()
    defence = DEFENCES[args.defence]
    low = defence.low if args.low is None else args.low
    high = defence.high if args.high is None else args.high
    if not 0 < low < high:
        raise SystemExit(f"--low and --high must be 0 < low < high. Received: {low:g}, {high:g}")
    folder = args.output / args.defence
    refuse_other_arguments(folder / "arguments.json", vars(args) | {"low": low, "high": high})

    train = kr.datasets.load(args.dataset, "train", data_dir=args.data_dir)
    x, y = as_arrays(train)
    order = np.random.default_rng(args.seed).permutation(len(x))
    held_out, kept = order[: args.num_examples], order[args.num_examples :][: args.train_examples]
    validation = x[held_out], y[held_out]
    num_classes = int(y.max()) + 1
    attack = kr.attacks.PGD(epsilon=args.epsilon, num_steps=7)
    judge = kr.attacks.PGD(epsilon=args.epsilon, num_steps=20)

    def build(hp: keras_tuner.HyperParameters) -> keras.Model:
        weight = hp.Float("weight", low, high, sampling="log")
        parts = defence.build(weight, attack)
        loss = parts.pop("loss", CROSS_ENTROPY)
        keras.utils.set_random_seed(args.seed)  # Trials only differ in the weight.
        classifier = make_classifier(x.shape[1:], num_classes, **parts)
        model = kr.RobustModel(classifier, seed=args.seed)
        model.compile(optimizer="adam", loss=loss, metrics=["accuracy"])
        return model

    callbacks = [
        *(make(x[kept], y[kept]) for make in defence.callbacks),
        kr.callbacks.RobustAccuracy(judge, *validation),
    ]
    search = {"random": keras_tuner.RandomSearch, "bayesian": keras_tuner.BayesianOptimization}
    tuner = search[args.search](
        build,
        objective=keras_tuner.Objective("val_robust_accuracy", "max"),
        max_trials=args.trials,
        seed=args.seed,
        directory=folder,
        project_name="trials",
        overwrite=False,
    )
    tuner.search(
        x[kept],
        y[kept],
        validation_data=validation,
        batch_size=args.batch_size,
        epochs=args.epochs,
        callbacks=callbacks,
        verbose=2,
    )

    finished = [trial for trial in tuner.oracle.trials.values() if trial.status == "COMPLETED"]
    trials = [
        {"weight": trial.hyperparameters.get("weight")}
        | {
            name: trial.metrics.get_last_value(name)
            for name in ("val_robust_accuracy", "val_accuracy")
        }
        for trial in finished
    ]
    trials.sort(key=lambda trial: trial["weight"])
    print(f"\n{args.defence} on {len(held_out)} images, PGD-20 at epsilon {args.epsilon:g}\n")
    print(table_of(trials))
    best = max(trials, key=lambda trial: trial["val_robust_accuracy"])
    print(f"\nThe best weight is {best['weight']:.4g}.")
    plot(trials, folder / "tuning.png", args.defence, chance=1 / num_classes)
    results = {
        "arguments": vars(args) | {"output": str(args.output)}, "trials": trials,
        "command": shlex.join(["python", "examples/tune.py", *sys.argv[1:]]),
        "machine": f"{backend.device()}, Keras {keras.__version__}, {keras.backend.backend()}",
    }  # fmt: skip
    (folder / "trials.json").write_text(json.dumps(results, indent=2) + "\n")
    print(f"The plot and the figures are in {folder}/")


def plot(trials: list[dict[str, float]], path: pathlib.Path, name: str, chance: float) -> None:
    """Plots clean and robust accuracy against the weight."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    weights = [trial["weight"] for trial in trials]
    for key, label, marker in (
        ("val_accuracy", "clean", "s"),
        ("val_robust_accuracy", "under PGD-20", "o"),
    ):
        axes.plot(weights, [100 * trial[key] for trial in trials], marker=marker, label=label)
    axes.axhline(100 * chance, color="gray", linestyle=":", label="chance")
    axes.set_xscale("log")
    axes.set_ylim(0, 100)
    axes.set_xlabel(f"weight of {name}")
    axes.set_ylabel("validation accuracy (%)")
    figure.legend(loc="outside upper center", ncols=3, frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)


if __name__ == "__main__":
    main()
