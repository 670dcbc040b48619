"""Writes docs/results.md: every table, from the JSON files in benchmarks/results/.

python benchmarks/report.py
"""

import json
import pathlib
import re
import sys
from typing import Any

ROOT = pathlib.Path(__file__).parent.parent
sys.path.append(str(ROOT / "examples"))
from records import interval  # noqa: E402

RESULTS, PAGE = ROOT / "benchmarks" / "results", ROOT / "docs" / "results.md"

# Yan et al., Table 1: accuracy, rho_2, accuracy under FGSM at 0.2, 0.5 and 1.0 of epsilon_ref.
PAPER_002 = {
    "mlp": {
        "Reference": (98.31, 0.111, 72.76, 29.08, 3.31),
        "Parseval": (98.32, 0.111, 77.44, 28.95, 2.96),
        "Adv. Train I": (98.49, 0.162, 87.70, 59.69, 22.55),
        "Deep Defense": (98.65, 0.225, 95.04, 88.93, 50.00),
    },
    "lenet": {
        "Reference": (99.02, 0.205, 90.95, 53.88, 19.75),
        "Parseval": (99.10, 0.203, 91.68, 66.48, 19.64),
        "Adv. Train I": (99.18, 0.263, 95.20, 74.82, 41.40),
        "Deep Defense": (99.34, 0.284, 96.51, 88.93, 50.00),
    },
}


# Schwartz and Ditzler, Table I: milliseconds per sample, and the benchmark's names for the methods.
PAPER_004 = {
    "Fisher information, VGG-16": 2.0,
    "latent disparity, pairs, VGG-16": 2.1,
    "guided denoising, pairs, VGG-16": 5.3,
}
METHODS = [*PAPER_002["mlp"], "Clean", "FGS training", "Deep Defense + FGS"]
DEEP_DEFENSE_FINDINGS = (
    "At the paper's rate, 5e-4, our networks move less than theirs: rho_2 grows by less, and the "
    "MLP's clean accuracy falls. At 5e-3 rho_2 grows nearly as in the paper on both networks, and "
    "clean accuracy rises on both. One reason can be the scale of the images, on which a rate's "
    "effect depends and which the paper does not name: with inputs times 10 the paper's rate "
    "does most of what 5e-3 does. Deep Defense's rho_2 is then larger than that of Adv. Train I, "
    "as in the paper. FGSM training (half of the loss at epsilon 0.1; not in the paper's Table 1) "
    "leaves more than Deep Defense at epsilon_ref under every attack and has the larger rho_2, on "
    "the MLP for less clean accuracy; both together have the largest rho_2, and on the MLP at "
    "5e-3 the highest clean accuracy too. At epsilon_ref the worst case lies far below FGSM for "
    "every network: FGSM alone overstates them."
)


def load(name: str) -> dict[str, Any]:
    path = RESULTS / name
    return json.loads(path.read_text()) if path.exists() else {}


def percent(value: float) -> str:
    return f"{100 * value:.2f}%"


def table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def made_by(runs: list[dict[str, Any]]) -> str:
    """The commands and machines, without where the data and the results lie."""
    commands = {
        re.sub(r"--output \S+", "", re.sub(r"--data-dir \S+", "--data-dir DIR", run["command"]))
        for run in runs
    }
    machines = sorted({run["machine"] for run in runs if "machine" in run})
    commands = sorted(" ".join(command.split()) for command in commands)
    return "\n".join(
        ["", *(f"    {command}" for command in commands), "", *(f"{name}." for name in machines)]
    )


def deep_defense() -> str:
    columns = ["accuracy", "rho_2", "FGSM 0.2", "FGSM 0.5", "FGSM 1.0"]
    more = ["worst case 0.2", "worst case 0.5", "worst case 1.0", "C&W L2"]
    gain = "rho_2 / reference's"
    parts = [
        "## Deep Defense on MNIST\n",
        "Each cell of the first six columns is ours / the paper's (Yan et al., Table 1). FGSM and "
        "rho_2 (DeepFool, 5 steps) are the paper's attacks, whose images leave [0, 1]. The worst "
        "case is over FGSM, PGD-40 with 5 restarts by two losses, and Square with 1,000 queries, "
        "without clipping too, on every tenth test image; C&W is the median L2 distance that fools "
        "within [0, 1], on every fiftieth.\n",
        DEEP_DEFENSE_FINDINGS,
    ]
    for path in sorted(RESULTS.glob("deep_defense_*.json")):
        runs = json.loads(path.read_text())
        settings, epsilon = next(
            (k, v["epsilon"]) for k, v in runs.items() if k.startswith("epsilon_ref, ")
        )
        _, network, _, schedule, _, *details, _ = settings.split(", ")
        found = {key.split(", ")[1]: run for key, run in runs.items() if "C&W L2" in run}
        reference, paper_reference = found["Reference"]["rho_2"], PAPER_002[network]["Reference"][1]
        rows = []
        for method in sorted(found, key=METHODS.index):
            run, paper = found[method], PAPER_002[network].get(method)
            ours = [f"{run[n]:.3f}" if n == "rho_2" else percent(run[n]) for n in columns]
            ours.insert(2, f"{run['rho_2'] / reference:.2f}")
            if paper:
                theirs = [f"{value:.2f}%" for value in (paper[0], *paper[2:])]
                theirs[1:1] = [f"{paper[1]:.3f}", f"{paper[1] / paper_reference:.2f}"]
                ours = [" / ".join(pair) for pair in zip(ours, theirs, strict=True)]
            ours += [f"{run[n]:.2f}" if n == "C&W L2" else percent(run[n]) for n in more]
            rows.append([method, *ours])
        title = [network.upper(), schedule, f"epsilon_ref = {epsilon:.3f}", *details]
        parts.append(f"\n### {', '.join(title)}\n")
        parts.append(table(["", *columns[:2], gain, *columns[2:], *more], rows))
        parts.append(made_by(list(found.values())))
    return "\n".join(parts) if len(parts) > 3 else ""


def latent_disparity() -> str:
    runs = load("latent_disparity.json")
    if not runs:
        return ""
    columns = [
        "clean", "transfer 8", "transfer 16", "transfer 32", "white-box 8", "white-box 16",
        "noise 32",
    ]  # fmt: skip
    methods: dict[str, list[dict[str, Any]]] = {}
    for key, run in runs.items():
        methods.setdefault(key.split(", ")[-1], []).append(run)
    rows = [
        [method, str(len(found)), *(interval([run[name] for run in found]) for name in columns)]
        for method, found in methods.items()
    ]
    return "\n".join([
        "## Latent disparity and its rivals on Fashion-MNIST\n",
        "Mean over stratified folds and 95% interval. Transfer: FGSM made on the "
        "undefended network, the paper's attack (Schwartz and Ditzler, figures 2 and 4); "
        "white-box: PGD-20 by two losses and Square on the network itself; noise: Gaussian "
        "(figures 3 and 5). Strengths are in 1/255. The paper prints no numbers, only plots; ours "
        "are below, the perturbation error of each layer (figure 6) last.\n",
        "Under the transferred attack HLDR and FIMR gain much, as in the paper, and HGD, which was "
        "shown them in training, gains little without noise, as in the paper too. Stability "
        "training keeps its clean accuracy at the weight taken here, 0.01; in the paper it falls "
        "to chance at every weight. But fine-tuning by cross-entropy on benign images alone gains "
        "as well: the images were made on the network before it, and what is measured is in part "
        "the distance from that network. Attacked itself, no network keeps anything to speak of "
        "at 16/255; at 8/255 HLDR keeps the most, a part of what the transferred attack promises. "
        "In the last layers FIMR's perturbation error is below HLDR's, although HLDR withstands "
        "more: the paper's own surprise.\n",
        table(["", "folds", *columns], rows),
        *(f"\n![{title}](images/latent_{name}.png)" for name, title in (
            ("transfer", "Accuracy and gain under the transferred FGSM"),
            ("white_box", "Accuracy and gain under attacks on the network itself"),
            ("noise", "Accuracy and gain under Gaussian noise"),
            ("layers", "Perturbation error of each layer"),
        )),
        made_by(list(runs.values())),
    ])  # fmt: skip


def small_data() -> str:
    runs = load("wnll_small_data.json")
    parts = [
        "## WNLL on small data\n",
        "1,000 training images, mean and 95% interval over seeds. CIFAR-10: a lossless part, "
        "tested on 4,085 other images of it. The prototype that the end-to-end training comes from "
        "had 97.0, 96.9 and 96.6% on MNIST, and 97.1% with the linear loss added, which is not "
        "confirmed here.",
    ]
    groups: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for key, run in runs.items():
        head, method, _ = key.rsplit(", ", 2)
        if method == "buffer block":
            head, method = head.rsplit(", ", 1)[0], "end to end, buffer block"
        if method == "a third":
            head, method = head.rsplit(", ", 1)[0], "softmax, a third of the epochs"
        groups.setdefault(head, {}).setdefault(method, []).append(run)
    for head, methods in groups.items():
        columns = ["accuracy", *(["worst case"] if " at epsilon " in head else [])]
        rows = [
            [method, str(len(found)), *(interval([run[c] for run in found]) for c in columns)]
            for method, found in methods.items()
        ]
        parts += [f"\n### {head}\n", table(["", "seeds", *columns], rows)]
        parts.append(made_by([run for found in methods.values() for run in found]))
    return "\n".join(parts) if groups else ""


def raw_pixels() -> str:
    runs = load("wnll_raw_pixels.json")
    paper = {"mnist": {"softmax regression": "92.65%"}}
    paper["mnist"]["published code: quartic, (14, 7), gamma 1"] = "97.74%"
    rows = []
    for key, run in runs.items():
        dataset, template, _, name = key.split(", ", 3)
        theirs = paper.get(dataset, {}).get(name, "")
        rows.append([dataset, template.split()[0], name, percent(run["accuracy"]), theirs])
    return "\n".join([
        "## WNLL on raw pixels\n",
        "All training images as template, nothing trained (Wang and Osher, Table 2). The paper's "
        "97.74% is reached by its code's settings, not by its text's. cifar10_jpeg is CIFAR-10 "
        "after lossy JPEG compression.\n",
        table(["", "template", "", "ours", "the paper"], rows),
        made_by(list(runs.values())),
    ]) if runs else ""  # fmt: skip


def wnll_robustness() -> str:
    runs = load("wnll_robustness.json")
    rows = []
    for key, run in runs.items():
        _, training, head, epsilon = key.split(", ")
        published = run.get("straight-through (published)", run.get("PGD"))
        rows.append([
            training, head, epsilon.split()[1], percent(run["clean"]), percent(published),
            percent(run["worst case"]),
        ])  # fmt: skip
    return "\n".join([
        "## WNLL under attack on MNIST\n",
        "Worst case over four surrogates and Square, beside the published attack (for softmax: "
        "PGD). The paper's figures (section 4.3) are of larger networks under the published attack "
        "alone, which overestimates: compare the last two columns.\n",
        table(["trained on", "head", "epsilon", "clean", "published attack", "worst case"], rows),
        made_by(list(runs.values())),
    ]) if runs else ""  # fmt: skip


def tuning() -> str:
    parts = [
        "## Tuning of a weight\n",
        "KerasTuner's random search; each trial trains the same small network with another weight "
        "and is judged by its best epoch's accuracy under PGD-20 on held-out images. That is one "
        "attack: what the chosen weight is worth, `kr.evaluate` tells. With the Fisher information "
        "robust accuracy falls as the weight grows: against an attack on the network itself it "
        "defends nothing here. With TRADES it grows with the weight up to some 7, clean accuracy "
        "falling, and stays there.",
    ]
    for path in sorted(RESULTS.glob("tune_*.json")):
        run = json.loads(path.read_text())
        arguments = run["arguments"]
        rows = [
            [f"{t['weight']:.3g}", percent(t["val_accuracy"]), percent(t["val_robust_accuracy"])]
            for t in run["trials"]
        ]
        parts.append(
            f"\n### {arguments['defence']}, {arguments['dataset']}, "
            f"epsilon {arguments['epsilon']}, seed {arguments['seed']}\n"
        )
        parts.append(table(["weight", "clean", "under PGD-20"], rows))
        parts.append(f"\n![Both accuracies against the weight](images/{path.stem}.png)")
        parts.append(made_by([run]))
    return "\n".join(parts) if len(parts) > 2 else ""


def verdicts() -> str:
    """The section that compares AutoAttack's versions on the same networks."""
    parts = ["## AutoAttack: `standard` and `fast`\n"]
    for path in sorted(RESULTS.glob("verdict-*.json")):
        content = json.loads(path.read_text())
        rows = []
        for case, v in content["cases"].items():
            versions = v["versions"]
            rows.append([
                f"{case}, epsilon {v['epsilon']}", percent(v["clean_accuracy"]),
                *(percent(found["robust_accuracy"]) for found in versions.values()),
                str(len(v["fooled_by_standard_alone"])), str(len(v["fooled_by_fast_alone"])),
                *(f"{found['gradients_per_example']:,.0f}" for found in versions.values()),
                *(f"{found['seconds']:,.0f}" for found in versions.values()),
                f"{v['ratio_of_seconds']:.2f}",
            ])  # fmt: skip
        header = [
            "", "clean", "robust, standard", "robust, fast", "fooled by standard alone",
            "by fast alone", "gradients, standard", "gradients, fast", "s, standard", "s, fast",
            "time, fast / standard",
        ]  # fmt: skip
        parts.append(f"### {content['backend']}, {content['machine']}\n")
        parts.append(table(header, rows))
        parts.append(made_by(list(content["cases"].values())) + f"\n{content['machine']}.\n")
    return "\n".join(parts) if len(parts) > 1 else ""


def costs() -> str:
    parts = ["## Cost\n", "Ratios to the passes that cannot be done without, in one process."]
    for path in sorted(RESULTS.glob("losses-*.json")):
        content = json.loads(path.read_text())
        rows = [
            [
                name, f"{1000 * v['median_seconds']:.1f}", f"{v['ratio_to_step']:.2f}",
                f"{v['ratio_to_floor']:.2f}",
                " + ".join(f"{count} {part}" for part, count in v["floor"].items()),
            ]
            for name, v in content["cases"].items()
        ]  # fmt: skip
        parts.append(
            f"\n### A training step of each loss: {content['backend']}, {content['machine']}\n"
        )
        parts.append(table(["", "ms", "/ ordinary step", "/ floor", "floor"], rows))
        parts.append(made_by(list(content["cases"].values())) + f"\n{content['machine']}.")
        if PAPER_004.keys() <= content["cases"].keys():
            parts.append(beside_paper_004(content["cases"]))
    for name, title in (("attacks", "Attacks"), ("wnll", "The WNLL head")):
        for path in sorted(RESULTS.glob(f"{name}-*.json")):
            content = json.loads(path.read_text())
            rows = []
            for case, values in content["cases"].items():
                if "libraries" in values:
                    values = values["libraries"]["keras_robust"]
                if "ratio_to_floor" in values:
                    rows.append([case, f"{values['ratio_to_floor']:.2f}"])
            parts.append(f"\n### {title}: {content['backend']}, {content['machine']}\n")
            parts.append(table(["", "times the floor"], rows))
            parts.append(made_by(list(content["cases"].values())) + f"\n{content['machine']}.")
    for path in sorted(RESULTS.glob("training-*.json")):
        parts.append(training(json.loads(path.read_text())))
    return "\n".join(parts)


def training(content: dict[str, Any]) -> str:
    """The times of gradients, training steps and PGD on one machine."""
    rows = [
        [
            f"{case}, {part}", f"{1000 * times['median_seconds']:,.2f}",
            f"{times['images_per_second']:,.0f}",
            f"{times['ratio_to_floor']:.2f}" if "ratio_to_floor" in times else "",
            f"{times['compile_seconds']:.1f}",
        ]
        for case, values in content["cases"].items()
        for part, times in values["times"].items()
    ]  # fmt: skip
    return "\n".join([
        f"\n### PGD: {content['backend']}, {content['machine']}\n",
        table(["", "ms", "images/s", "times the floor", "seconds to compile"], rows),
        made_by(list(content["cases"].values())) + f"\n{content['machine']}.",
    ])  # fmt: skip


def beside_paper_004(cases: dict[str, Any]) -> str:
    fisher, fisher_in_paper = next(iter(PAPER_004.items()))
    least = cases[fisher]["milliseconds_per_sample"]
    rows = []
    for name, theirs in PAPER_004.items():
        ours = cases[name]["milliseconds_per_sample"]
        floor = 1000 * cases[name]["floor_median_seconds"] / cases[name]["batch_size"]
        rows.append([
            name, f"{ours:.1f} / {theirs}", f"{ours / least:.2f} / {theirs / fisher_in_paper:.2f}",
            f"{floor / least:.2f}",
        ])  # fmt: skip
    return "\n".join([
        "\nThe last three beside Schwartz and Ditzler's Table I, which a GPU made: ours / theirs. "
        "Latent disparity takes twice as many images through the network as the Fisher "
        "information, which a GPU that is not full may hide and a CPU does not. Guided denoising "
        "stays below the paper's ratio, though its denoiser has more multiplications than the "
        "network: its convolutions are over larger images and fewer channels.\n",
        table(["", "ms per sample", "/ Fisher information", "floor / Fisher information"], rows),
    ])  # fmt: skip


def page() -> str:
    sections = [
        "# Results\n\nWritten by `python benchmarks/report.py` from `benchmarks/results/`; each "
        "table says by which command its figures were made. DIR is a folder of TensorFlow "
        "Datasets.",
        deep_defense(), latent_disparity(), small_data(), raw_pixels(), wnll_robustness(),
        tuning(), verdicts(), costs(),
    ]  # fmt: skip
    return "\n\n".join(section.rstrip() for section in sections if section) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page())
    print(PAGE)
