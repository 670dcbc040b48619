"""Compares the cost of a WNLL head with that of a dense layer, and times its neighbour search.

    python benchmarks/wnll.py
    python benchmarks/wnll.py --parts forward --neighbors scann
    python benchmarks/wnll.py --parts search --sizes 1000 10000 100000

The model is a ResNet-20, on batches of random images of 32 x 32. The parts are:

- `forward`: the time of a forward pass with the head, for templates of several sizes, divided by
  that with a dense layer;
- `training`: the time of a step of `kr.losses.GraphInterpolation` (exact gradient) in `fit`,
  divided by that of cross-entropy, and the peak memory of each, measured in separate processes;
- `search`: the time per query of a search for 30 neighbours among clustered features;
- `lists`: the difference between the probabilities of a head with cached neighbour lists and those
  on the exact union graph.

ScaNN is skipped if it cannot be imported. So is the plot of the search if Matplotlib cannot.
"""

import argparse
import json
import pathlib
from typing import Any

import harness
import keras
import numpy as np
from memory import number_printed, peak_bytes
from models import resnet20
from training import measured, measured_fit

import keras_robust as kr
from keras_robust.layers import wnll_template

PARTS = ["forward", "training", "search", "lists"]


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--parts", nargs="*", choices=PARTS, default=PARTS)
    parser.add_argument("--templates", type=int, nargs="*", default=[500, 50_000])
    parser.add_argument("--neighbors", nargs="*", default=["exact", "scann"])
    parser.add_argument(
        "--sizes", type=int, nargs="*", default=[1000, 10_000, 100_000, 300_000, 1_000_000]
    )
    parser.add_argument("--batch-size", type=int, default=500)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=1.0, help="least duration of a sample")
    parser.add_argument(
        "--memory", action=argparse.BooleanOptionalAction, default=True, help="measure memory, too"
    )
    parser.add_argument("--output", type=pathlib.Path, default=harness.RESULTS)
    parser.add_argument("--peak-memory-of", choices=["softmax", "wnll"], help="used internally")
    return parser.parse_args()


def images(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.random((count, 32, 32, 3), "float32"), np.arange(count) % 10


def clustered(count: int, dimensions: int = 64, num_clusters: int = 100) -> np.ndarray:
    """Returns points around random centers, like features of classes and their subclasses."""
    rng = np.random.default_rng(0)
    centers = rng.normal(size=(num_clusters, dimensions))
    points = centers[rng.integers(num_clusters, size=count)]
    return (points + 0.5 * rng.normal(size=points.shape)).astype("float32")


def has_scann() -> bool:
    try:
        kr.neighbors.ScannIndex(np.zeros((2, 2), "float32"), num_neighbors=1)
    except ImportError as error:
        print(error)
        return False
    return True


def forward(size: int, neighbors: str, args: argparse.Namespace) -> dict[str, Any]:
    keras.utils.set_random_seed(0)
    x, _ = images(args.batch_size)
    dense = resnet20()
    model = resnet20(kr.layers.WNLLHead(10, units=64, template_size=size, neighbors=neighbors))
    # Clustered features, because those of the untrained network are all alike.
    features = clustered(size)
    model.layers[-1].adapt(features, np.arange(size) % 10)
    batch = keras.ops.convert_to_tensor(x)

    measures = {
        name: measured(lambda each=each: each.predict_on_batch(batch), args.seconds)[0]
        for name, each in {"dense": dense, "wnll": model}.items()
    }
    samples = harness.interleave(measures, args.repeats)
    return harness.summary(samples["wnll"], samples["dense"])


def trained_model(kind: str, batch_size: int, num_folds: int = 3) -> keras.Model:
    keras.utils.set_random_seed(0)
    if kind == "softmax":
        model = resnet20()
        model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        return model
    robust = kr.RobustModel(resnet20(kr.layers.WNLLHead(10, units=64, template_size=batch_size)))
    robust.compile(optimizer="adam", loss=kr.losses.GraphInterpolation(num_folds=num_folds))
    return robust


def training(num_folds: int, args: argparse.Namespace) -> dict[str, Any]:
    data = images(args.batch_size)
    measures = {
        kind: measured_fit(trained_model(kind, args.batch_size, num_folds), *data, args.seconds)[0]
        for kind in ("softmax", "wnll")
    }
    samples = harness.interleave(measures, args.repeats)
    return harness.summary(samples["wnll"], samples["softmax"])


def peak_of(kind: str, batch_size: int) -> int:
    return number_printed(__file__, "--peak-memory-of", kind, "--batch-size", batch_size)


def search(size: int, neighbors: str, args: argparse.Namespace) -> dict[str, Any]:
    points = clustered(size + args.batch_size)
    queries, points = points[: args.batch_size], points[args.batch_size :]
    if neighbors == "scann":
        index: Any = kr.neighbors.ScannIndex(points)
    else:
        index = kr.neighbors.ExactIndex(points)
    sample, _ = measured(lambda: index.search(queries, 30)[0], args.seconds)
    samples = [sample() for _ in range(args.repeats)]
    figures = {"microseconds_per_query": 1e6 * float(np.median(samples)) / args.batch_size}
    return figures | ({"recall_at_30": index.recall(queries)} if neighbors == "scann" else {})


def lists(size: int, joint: bool, batch_size: int) -> dict[str, float]:
    """Compares the probabilities of a head with cached lists with those on the union graph."""
    points, labels = clustered(size + batch_size), np.arange(size + batch_size) % 10
    centers = np.random.default_rng(1).normal(size=(10, 64))
    points = points + centers[labels].astype("float32")
    answers = []
    for limit in (0, size):
        wnll_template._MAX_UNION = limit
        head = kr.layers.WNLLHead(10, template_size=size, joint=joint)
        head.adapt(points[:size], labels[:size])
        answers.append(keras.ops.convert_to_numpy(keras.ops.softmax(head(points[size:]))))
    wnll_template._MAX_UNION = 2000
    difference = np.abs(answers[0] - answers[1]).max(axis=1)
    return {
        "mean_difference": float(difference.mean()),
        "largest_difference": float(difference.max()),
        "other_class": float(np.mean(answers[0].argmax(axis=1) != answers[1].argmax(axis=1))),
    }


def plot(cases: dict[str, Any], path: pathlib.Path) -> None:
    try:
        import matplotlib
    except ImportError as error:
        print(f"The search is not plotted: {error}")
        return
    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(6, 4))
    for neighbors, marker in (("exact", "o"), ("scann", "s")):
        rows = {
            int(name.split()[1].replace(",", "")): case
            for name, case in cases.items()
            if name.startswith("search") and name.endswith(neighbors)
        }
        sizes = sorted(rows)
        if sizes:
            axis.loglog(sizes, [rows[size]["microseconds_per_query"] for size in sizes],
                        marker=marker, label=neighbors)  # fmt: skip
            for size in sizes:
                if "recall_at_30" in rows[size]:
                    axis.annotate(f"{rows[size]['recall_at_30']:.2f}", textcoords="offset points",
                                  xy=(size, rows[size]["microseconds_per_query"]),
                                  xytext=(0, -14), ha="center", fontsize=8)  # fmt: skip
    axis.set(xlabel="template points", ylabel="microseconds per query",
             title="30 nearest neighbours in 64 dimensions (ScaNN: with its recall)")  # fmt: skip
    axis.margins(0.1)
    axis.grid(alpha=0.3, which="both")
    axis.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main() -> None:
    args = parse_arguments()
    if args.peak_memory_of:
        x, y = images(2 * args.batch_size)
        model = trained_model(args.peak_memory_of, args.batch_size)
        model.fit(x, y, args.batch_size, epochs=2, verbose=0)
        print(peak_bytes())
        return
    results = harness.Results("wnll", args.output)
    kinds = [kind for kind in args.neighbors if kind != "scann" or has_scann()]

    def add(name: str, figures: dict[str, Any], *shown: str) -> None:
        results.add(name, {"batch_size": args.batch_size, **figures})
        print(f"{name:45} " + "  ".join(f"{key} {figures[key]:.4g}" for key in shown), flush=True)

    if "forward" in args.parts:
        for size in args.templates:
            for kind in kinds if size > min(args.templates) else kinds[:1]:
                figures = forward(size, kind, args)
                add(f"forward, {size:,} template points, {kind}", figures, "ratio_to_floor")
    if "training" in args.parts:
        for num_folds in (2, 3):
            figures = training(num_folds, args)
            add(f"training step, {num_folds} folds", figures, "ratio_to_floor")
        if args.memory:
            peaks = {kind: peak_of(kind, args.batch_size) for kind in ("softmax", "wnll")}
            figures = {**peaks, "ratio_to_softmax": peaks["wnll"] / peaks["softmax"]}
            add("peak memory of training", figures, "ratio_to_softmax")
    if "lists" in args.parts:
        for joint in (True, False):
            name = f"cached lists, 3,000 template points, joint={joint}"
            figures = lists(3000, joint, args.batch_size)
            add(name, figures, "mean_difference", "largest_difference", "other_class")
    if "search" in args.parts:
        for size in args.sizes:
            for kind in kinds:
                figures = search(size, kind, args)
                shown = ["microseconds_per_query", *(["recall_at_30"] if kind == "scann" else [])]
                add(f"search {size:,} points, {kind}", figures, *shown)
        plot(json.loads(results.path.read_text())["cases"], results.path.with_suffix(".png"))
    print(f"\n{results.path}")


if __name__ == "__main__":
    main()
