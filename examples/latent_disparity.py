"""The experiment of the latent disparity paper, and white-box attacks on the same networks.

    python examples/latent_disparity.py --data-dir DIR
    python examples/latent_disparity.py --data-dir DIR --width 1.0 --folds 10 --num-finetune 6000

A VGG-16 with batch norm (`--width` scales its channels; 1.0 is the paper's) is trained on 10,000
images. For each of some stratified folds of the other images it is fine-tuned by each method on
pairs (x, x_a) of benign images and FGSM's at 0, 16/255 and 32/255, and once more with pairs of
benign and noisy images added ("+ noise"). The adversarial images are made on the network before
fine-tuning, those that it is tested with too: the paper's attack is a transferred one. Beside it
stand attacks on the defended network itself, through the denoiser where it has one: PGD by two
losses, and Square, which would show a gradient that is masked.

Plots: accuracy against epsilon under the transferred FGSM (the paper's figures 2 and 4) and under
white-box attacks, accuracy against noise (3 and 5), each with the gain over the undefended network
below, and the perturbation error of each layer (6), with 95% intervals over the folds. Interrupted,
the same command continues at the next method; with more `--folds`, at the next fold.
"""

import argparse
import functools
import pathlib
from typing import Any

import keras
import numpy as np
from records import Records, center_and_half, interval
from vgg import layer_names, vgg

import keras_robust as kr
from keras_robust.metrics.analysis import require_scikit_learn
from keras_robust.metrics.perturbed import perturbed_images
from keras_robust.model.arrays import as_arrays
from keras_robust.model.classifier import Classifier
from keras_robust.report.plots import require_matplotlib

L = keras.layers
CROSS_ENTROPY = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
TRAINED_AT = (0.0, 16 / 255, 32 / 255)
TESTED_AT = (8 / 255, 16 / 255, 24 / 255, 32 / 255)
NOISE = (16 / 255, 32 / 255, 64 / 255)
NOISE_STDDEV = 32 / 255
METHODS = ("undefended", "cross-entropy", "HLDR", "FIMR", "HGD", "stability")
WITH_NOISE = ("AGNT", "HLDR + noise", "FIMR + noise", "HGD + noise")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--dataset", default="fashion_mnist")
    parser.add_argument("--data-dir", default=None, help="folder of TensorFlow Datasets")
    parser.add_argument("--width", type=float, default=0.125, help="times VGG-16's channels")
    parser.add_argument("--folds", type=int, default=3, help="of 10 that are used")
    parser.add_argument("--num-pretrain", type=int, default=10_000)
    parser.add_argument("--pretrain-epochs", type=int, default=30)
    parser.add_argument("--num-finetune", type=int, default=2000, help="benign images")
    parser.add_argument("--epochs", type=int, default=10, help="of fine-tuning")
    parser.add_argument("--num-test", type=int, default=1000, help="images of each fold")
    parser.add_argument("--num-attacked", type=int, default=500, help="by white-box attacks")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--methods", nargs="+", choices=METHODS + WITH_NOISE, default=list(METHODS + WITH_NOISE)
    )
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("latent_disparity"))
    return parser.parse_args()


def pretrained(args: argparse.Namespace, data: tuple) -> keras.Model:
    path = args.output / (
        f"pretrained-{args.dataset}-{args.width}-{args.num_pretrain}-{args.pretrain_epochs}-"
        f"{args.seed}.keras"
    )
    if not path.exists():
        keras.utils.set_random_seed(args.seed)
        model = vgg(data[0].shape[1:], args.width)
        model.compile("nadam", CROSS_ENTROPY, metrics=["accuracy"])
        stop = keras.callbacks.EarlyStopping(patience=8, restore_best_weights=True)
        model.fit(
            *data, batch_size=128, epochs=args.pretrain_epochs, validation_split=0.1,
            callbacks=[stop], verbose=2,
        )  # fmt: skip
        model.save(path)
    return keras.models.load_model(path)


def fgsm(model: keras.Model, x: np.ndarray, y: np.ndarray, epsilon: float) -> np.ndarray:
    """FGSM's images, whether they fool the model or not."""
    if epsilon == 0:
        return x
    attack = kr.attacks.FGSM(epsilon)
    return perturbed_images(Classifier.of(model), x, y, attack, 500, 0)


class Fold:
    """Images of a fold, and what the undefended network makes of them, once for all methods."""

    def __init__(self, number: int, undefended: keras.Model, train: tuple, test: tuple) -> None:
        self.number, self.undefended, self.train, self.test = number, undefended, train, test

    @functools.cached_property
    def perturbed(self) -> list[np.ndarray]:
        return [fgsm(self.undefended, *self.train, epsilon) for epsilon in TRAINED_AT]

    @functools.cached_property
    def transferred(self) -> dict[float, np.ndarray]:
        return {epsilon: fgsm(self.undefended, *self.test, epsilon) for epsilon in TESTED_AT}

    def pairs(self, noise: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The paper's fine-tuning set: benign images, their counterparts, labels."""
        x, y = self.train
        perturbed = self.perturbed + ([noisy(x, self.number)] if noise else [])
        count = len(perturbed)
        return np.concatenate([x] * count), np.concatenate(perturbed), np.concatenate([y] * count)


def noisy(x: np.ndarray, seed: int) -> np.ndarray:
    draws = np.random.default_rng(seed).normal(0, NOISE_STDDEV, x.shape)
    return (x + draws).astype("float32")


def defended(args: argparse.Namespace, method: str, fold: Fold) -> keras.Model:
    """The network after fine-tuning by a method."""
    keras.utils.set_random_seed(100 * args.seed + fold.number)
    train = fold.train
    model = vgg(train[0].shape[1:], args.width)
    model.set_weights(fold.undefended.get_weights())
    if method == "undefended":
        return model
    x, x_a, y = fold.pairs("noise" in method)
    loss: Any = CROSS_ENTROPY
    takes_pairs = method.startswith(("HLDR", "HGD"))
    if method.startswith("HLDR"):
        loss = kr.losses.LatentDisparity(None, weight=0.25, layers=layer_names(model))
    elif method.startswith("HGD"):
        model.trainable = False
        widths = tuple(max(8, round(args.width * width)) for width in (64, 128, 256, 256, 256))
        denoiser = kr.layers.GuidedDenoiser(widths=widths)
        model = keras.Sequential([keras.Input(x.shape[1:]), denoiser, model])
        loss = kr.losses.GuidedDenoising(None)
    elif method.startswith("FIMR"):
        loss = kr.losses.FisherInformation(weight=0.0025)
        if "noise" not in method:
            x, y = train
        else:  # As for AGNT, beside the benign images.
            x, y = np.concatenate([train[0], noisy(train[0], fold.number)]), np.tile(train[1], 2)
    elif method == "stability":
        loss = kr.losses.StabilityTraining(weight=0.01, stddev=NOISE_STDDEV)
        x, y = train
    elif method == "AGNT":
        x, y = noisy(train[0], fold.number), train[1]
    else:  # cross-entropy: benign images alone, as a control.
        x, y = train
    order = np.random.default_rng(fold.number).permutation(len(x))

    def data(rows: np.ndarray) -> tuple[Any, np.ndarray]:
        return ((x[rows], x_a[rows]) if takes_pairs else x[rows]), y[rows]

    held_out = len(x) // 10
    # As many steps for each method as the pairs ask for.
    epochs = args.epochs if takes_pairs else args.epochs * max(1, round(len(x_a) / len(x)))
    robust = kr.RobustModel(model)
    robust.compile("nadam", loss, metrics=["accuracy"])
    checkpoint = args.output / "best.weights.h5"
    robust.fit(
        *data(order[held_out:]), batch_size=100, epochs=epochs, verbose=0,
        validation_data=data(order[:held_out]), validation_batch_size=500,
        callbacks=[
            keras.callbacks.ModelCheckpoint(checkpoint, save_best_only=True, save_weights_only=True)
        ],
    )  # fmt: skip
    robust.load_weights(checkpoint)
    return model


def accuracy(model: keras.Model, x: np.ndarray, y: np.ndarray) -> float:
    return float((model.predict(x, batch_size=500, verbose=0).argmax(axis=1) == y).mean())


def measure(args: argparse.Namespace, model: keras.Model, fold: Fold) -> dict[str, Any]:
    x, y = fold.test
    found: dict[str, Any] = {"clean": accuracy(model, x, y)}
    for epsilon, x_adv in fold.transferred.items():
        found[f"transfer {255 * epsilon:.0f}"] = accuracy(model, x_adv, y)
    some = slice(args.num_attacked)
    for epsilon in TESTED_AT:
        attacks = {
            "PGD": kr.attacks.PGD(epsilon, num_steps=20),
            "PGD, margin": kr.attacks.PGD(epsilon, num_steps=20, loss="margin"),
            "Square": kr.attacks.Square(epsilon, num_queries=500),
        }
        report = kr.evaluate(
            model, x[some], y[some], attacks, checks=False, worst_case_only=True, batch_size=500,
            verbose=0,
        )  # fmt: skip
        found[f"white-box {255 * epsilon:.0f}"] = report.accuracy("worst case")
    noise = kr.evaluation.noise_accuracy(
        model, x, y, stddevs=NOISE, num_draws=3, batch_size=500, verbose=0
    )
    found.update({f"noise {255 * stddev:.0f}": noise[stddev].mean for stddev in NOISE})
    inner = model.layers[-1] if isinstance(model.layers[-1], keras.Model) else model
    prefix = "" if inner is model else f"{inner.name}/"
    names = [prefix + name for name in layer_names(inner)]
    errors = kr.evaluation.perturbation_error(
        model, x[some], fold.transferred[8 / 255][some], layers=names, batch_size=500
    )
    found["errors"] = [errors[name] for name in names]
    return found


def draw(runs: dict[str, list[dict[str, Any]]], folder: pathlib.Path) -> None:
    """The plots: left without noise in training, right with it; below, over the undefended."""
    series = {
        "transfer": ("FGSM made on the undefended network", TESTED_AT),
        "white-box": ("PGD-20 and Square on the network itself", TESTED_AT),
        "noise": ("Gaussian noise", NOISE),
    }
    for name, (title, values) in series.items():
        places = [0, *(round(255 * value) for value in values)]
        keys = ["clean", *(f"{name} {place}" for place in places[1:])]
        accuracies = {m: np.array([[run[k] for k in keys] for run in runs[m]]) for m in runs}
        rows = {"accuracy": accuracies}
        if "undefended" in runs:
            undefended = accuracies["undefended"]
            rows["gain"] = {m: accuracies[m] - undefended for m in runs if m != "undefended"}
        unit = "epsilon" if name != "noise" else "standard deviation"
        draw_rows(rows, places, f"{unit}, 1/255", f"under {title}, %", folder / f"{name}.png")
    errors = {m: np.array([run["errors"] for run in runs[m]]) for m in runs}
    places = list(range(1, 1 + next(iter(errors.values())).shape[1]))
    draw_rows(
        {"perturbation error": errors}, places, "layer", "at 8/255, transferred FGSM, %",
        folder / "perturbation_error.png",
    )  # fmt: skip


def draw_rows(
    rows: dict[str, dict[str, np.ndarray]], places: list[int], xlabel: str, ylabel: str,
    path: pathlib.Path,
) -> None:  # fmt: skip
    """A row of two plots for each entry: methods and their values, `(folds, places)`."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 1 + 3.6 * len(rows)), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(rows), 2, sharey="row", squeeze=False)
    colors = {method: f"C{number % 10}" for number, method in enumerate(METHODS + WITH_NOISE)}
    for line, (quantity, values) in zip(axes, rows.items(), strict=True):
        for axis, methods in zip(line, (METHODS, ("undefended", *WITH_NOISE)), strict=True):
            for number, method in enumerate(m for m in methods if m in values):
                found = 100 * np.array([center_and_half(column) for column in values[method].T])
                shifted = np.array(places) + 0.01 * (places[-1] - places[0]) * (number - 2.5)
                axis.errorbar(
                    shifted, found[:, 0], found[:, 1], label=method, color=colors[method],
                    marker="o", markersize=3, capsize=2,
                )  # fmt: skip
            axis.spines[["top", "right"]].set_visible(False)
            axis.legend(fontsize=8)
        line[0].set_ylabel(f"{quantity} {ylabel}", fontsize=8)
    for axis in axes[-1]:
        axis.set_xlabel(xlabel)
    figure.savefig(path)


def main() -> None:
    args = parse_arguments()
    require_matplotlib()
    require_scikit_learn()
    from sklearn.model_selection import StratifiedKFold

    args.output.mkdir(parents=True, exist_ok=True)
    parts = [
        as_arrays(kr.datasets.load(args.dataset, split, data_dir=args.data_dir))
        for split in ("train", "test")
    ]
    x, y = (np.concatenate([part[i] for part in parts]) for i in (0, 1))
    order = np.random.default_rng(args.seed).permutation(len(x))
    first, rest = order[: args.num_pretrain], order[args.num_pretrain :]
    undefended = pretrained(args, (x[first], y[first]))
    records = Records(args.output / "results.json")
    folds = StratifiedKFold(10, shuffle=True, random_state=args.seed).split(rest, y[rest])
    runs: dict[str, list[dict[str, Any]]] = {method: [] for method in args.methods}
    settings = (
        f"{args.dataset}, width {args.width}, {args.num_pretrain} images for "
        f"{args.pretrain_epochs} epochs, {args.num_finetune} for {args.epochs}, "
        f"{args.num_test} tested, {args.num_attacked} attacked, seed {args.seed}"
    )
    for number, (train, test) in zip(range(args.folds), folds, strict=False):
        chosen, tested = rest[train[: args.num_finetune]], rest[test[: args.num_test]]
        fold = Fold(number, undefended, (x[chosen], y[chosen]), (x[tested], y[tested]))
        for method in args.methods:
            found = records.run(
                f"{settings}, fold {number}, {method}",
                lambda fold=fold, method=method: measure(
                    args, defended(args, method, fold), fold
                ),
            )  # fmt: skip
            runs[method].append(found)
            print(f"fold {number}  {method:15} clean {found['clean']:.1%}  "
                  f"transfer 16: {found['transfer 16']:.1%}  "
                  f"white-box 16: {found['white-box 16']:.1%}", flush=True)  # fmt: skip
    columns = ["clean", "transfer 8", "transfer 16", "transfer 32", "white-box 8", "white-box 16",
               "noise 32"]  # fmt: skip
    print(f"\n{'':16}" + "".join(f"{name:>14}" for name in columns))
    for method, found in runs.items():
        cells = [interval([run[name] for run in found]) for name in columns]
        print(f"{method:16}" + "".join(f"{cell:>14}" for cell in cells))
    draw(runs, args.output)


if __name__ == "__main__":
    main()
