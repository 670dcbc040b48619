"""Writes the results: docs/results.md, the pages in docs/results/, and README's table.

    python benchmarks/report.py

All measured values come from the records in benchmarks/results/, each of which has the command that
measured it. `docs/results.md` compares the defences. Each paper has a page with its tables. Another
page has the results of tuning, the comparison of AutoAttack's versions, and the costs.
"""

import dataclasses
import functools
import json
import re
from collections.abc import Sequence
from statistics import mean
from typing import Any, NamedTuple

# isort: off
from paper_pages import PICTURES, ROOT, found, markdown_table, new_figure, page, shown
import deep_defense
import graph_interpolation
import latent_disparity
import weight_penalization
import wnll_defense
from papers import PAPERS
# isort: on

RESULTS = ROOT / "benchmarks" / "results"


@dataclasses.dataclass(frozen=True)
class Claim:
    """The claim of a paper for a defence, which is a row of the summary table.

    Args:
        defence: name of the defence.
        paper: the paper, a `Paper`.
        table: name of the paper's table with the claim.
        row: row of the defence in this table.
        attack: column of the paper's own attack.
        worst: column of the worst case at the same radius.
        setting: data set and radius.
        cost: name of the training step in the records of `benchmarks/losses.py`. `None` if it is
            an ordinary step.
        clean: column of clean accuracy. Defaults to `"clean"`.
        worst_row: row of the worst case. Defaults to `None`: the same row.
    """

    defence: str
    paper: Any
    table: str
    row: str
    attack: str
    worst: str
    setting: str
    cost: str | None
    clean: str = "clean"
    worst_row: str | None = None


ADVERSARIAL_STEP = "adversarial training, PGD-7"
CLAIMS = (
    *(
        Claim(defence, weight_penalization.PAPER, table, row, attack, "worst case", setting, cost)
        for defence, row, cost in (
            ("adversarial training (baseline)", "adversarial training", ADVERSARIAL_STEP),
            ("tanh + angular", "tanh + angular", None),
            (
                "tanh + angular, adversarial training", "tanh + angular, adversarial training",
                ADVERSARIAL_STEP,
            ),
            ("Max-Mahalanobis center (MMC)", "MMC", "Max-Mahalanobis"),
        )
        for table, attack, setting in (
            ("Table 4", "PGD-40", "MNIST, 0.3"), ("Table 5", "PGD-20", "CIFAR-10, 8/255"),
        )
    ),
    *(
        Claim(
            defence, graph_interpolation.PAPER, table, row, attack, "worst case", setting,
            ADVERSARIAL_STEP,
        )
        for table, attack, setting in (
            ("Table 6", "IFGSM-40", "MNIST, 0.3"), ("Table 8", "IFGSM-20", "CIFAR-10, 8/255"),
        )
        for defence, row in (
            ("adversarial training (softmax of the next row)", "softmax"),
            ("WNLL, adversarial training", "WNLL"),
        )
    ),
    Claim(
        "WNLL and TVM, trained on original and TVM images", wnll_defense.PAPER, "Table 5",
        "WNLL, FGSM, original + TVM", "0.02, behind TVM", "0.02, behind TVM", "CIFAR-10, 0.02",
        None, "clean, behind TVM", "WNLL, worst case, original + TVM",
    ),
    *(
        Claim(
            "Deep Defense", deep_defense.PAPER, "Table 1", f"{network}, Deep Defense", "FGSM 1.0",
            "worst case 1.0", f"{data}, epsilon_ref", "Deep Defense",
        )
        for network, data in (("LeNet", "MNIST"), ("ConvNet", "CIFAR-10"))
    ),
    *(
        Claim(
            defence, latent_disparity.PAPER, f"Figures 2 to 6, {data}", row, "transfer 8",
            "white-box 8", f"{data}, 8/255", cost,
        )
        for defence, row, cost in (
            ("latent disparity", "HLDR", "latent disparity, FGSM"),
            ("Fisher information", "FIMR", "Fisher information"),
            ("guided denoiser", "HGD", "guided denoising, FGSM"),
            ("stability training", "stability", "stability training"),
        )
        for data in ("Fashion-MNIST", "CIFAR-10")
    ),
)  # fmt: skip


# Milliseconds per sample in Table I of Schwartz and Ditzler, by the case of `benchmarks/losses.py`.
TABLE_I = {
    "Fisher information, VGG-16": 2.0,
    "latent disparity, pairs, VGG-16": 2.1,
    "guided denoising, pairs, VGG-16": 5.3,
}


def load(name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((RESULTS / name).read_text())
    return content


def percent(value: float) -> str:
    return f"{100 * value:.2f}%"


class Measured(NamedTuple):
    """A claim and its measured values."""

    claim: Claim
    published: float | None
    scale: str
    # Accuracies of each seed: clean, under the paper's attack, and in the worst case. Empty if they
    # are not measured.
    values: tuple[list[float], ...]


@functools.cache
def measured() -> tuple[Measured, ...]:
    """Returns all claims with their measured values, at the paper's scale if available."""
    rows = []
    for claim in CLAIMS:
        table = claim.paper.tables[claim.table]
        scale = "paper" if found(table, "paper").get(claim.row) else "small"
        records = found(table, scale)
        seeds, worst = records.get(claim.row), records.get(claim.worst_row or claim.row)
        values: tuple[list[float], ...] = ()
        if seeds and worst:
            columns = ((claim.clean, seeds), (claim.attack, seeds), (claim.worst, worst))
            values = tuple([s["values"][column] for s in part] for column, part in columns)
        published = table.published.get(claim.row, {}).get(claim.attack)
        rows.append(Measured(claim, published, scale, values))
    return tuple(rows)


def opening() -> str:
    """Returns the first page: a table and a picture of all claims, and the conclusion."""
    costs = load("losses-amd-epyc-2-cores-tensorflow.json")["cases"]
    rows = []
    for claim, published, scale, values in measured():
        theirs = "not published" if published is None else percent(published)
        cost = "1.0" if claim.cost is None else f"{costs[claim.cost]['ratio_to_step']:.1f}"
        cells = [scale, *(shown("", column) for column in values)] if values else [
            "not measured", "", "", "",
        ]  # fmt: skip
        rows.append([
            claim.defence, claim.setting, f"{claim.attack}: {theirs}", *cells, cost, "none",
            f"[{claim.table}](results/{claim.paper.key}.md)",
        ])  # fmt: skip
    header = [
        "defence", "data, radius", "paper's attack: published accuracy", "scale",
        "clean, measured", "paper's attack, measured", "worst case, measured",
        "cost of a training step", "certificate", "details",
    ]  # fmt: skip
    with_values = [row for row in measured() if row.values]
    draw_claims(with_values)
    return "\n".join([
        "# Results\n",
        "This page compares the published robust accuracy of each defence with two measured ones: "
        "under the same attack, and in the worst case over the strongest attacks of this "
        "library.\n",
        conclusion(with_values),
        "\n## Published and measured robust accuracy\n",
        markdown_table(header, rows),
        "\n![Published robust accuracy, measured robust accuracy under the same attack, and the "
        "worst case](images/results/claims.png)\n",
        legend(measured()),
        "- **Cost of a training step** is relative to an ordinary training step "
        "(`benchmarks/losses.py`, small network, TensorFlow, AMD EPYC, 2 cores).",
        "- **Certificate.** None of these defences has one, so a stronger attack may lower any of "
        "these accuracies. `kr.evaluation.certify` computes certificates by randomized smoothing "
        "([evaluation](evaluation.md)).",
        "\n## Tables and figures\n",
        "Each page gives the commands that reproduce its tables and figures:\n",
        *(f"- [{paper.title}](results/{paper.key}.md)" for paper in PAPERS.values()),
        "- [Tuning, AutoAttack versions, and cost](results/measurements.md)",
    ])  # fmt: skip


def conclusion(rows: list[Measured]) -> str:
    """Returns three sentences. The first one is on the claim with the largest difference."""
    known = [row for row in rows if row.published is not None]
    claim, published, scale, values = max(
        known, key=lambda row: row.published - mean(row.values[2])
    )
    same, worst = (shown("", column) for column in values[1:])
    return (
        f"Published and measured robust accuracy differ most for {claim.defence} "
        f"({claim.setting}): {percent(published)} under {claim.attack} in the paper, {same} under "
        f"the same attack here ({scale} scale), and {worst} in the worst case. A published robust "
        "accuracy is an upper bound, which a stronger attack may lower. Compare defences by the "
        "worst case, where adversarial training is the baseline that a defence has to exceed."
    )


def readme() -> str:
    """Returns the README, with a table of the measured claims between its marks."""
    text = (ROOT / "README.md").read_text()
    begin, end = "<!-- results -->", "<!-- end of results -->"
    rows = [
        [
            claim.defence, claim.setting, claim.attack, "" if known is None else percent(known),
            *(shown("", column) for column in values[1:]), scale,
        ]
        for claim, known, scale, values in measured()
        if values
    ]  # fmt: skip
    header = ["defence", "data, radius", "paper's attack", "published", "measured",
              "worst case, measured", "scale"]  # fmt: skip
    inner = "\n".join([
        "The table compares the published robust accuracy of each defence with two measured ones: "
        "under the same attack, and in the worst case over the strongest attacks of this "
        "library.\n",
        markdown_table(header, rows),
        "\n" + legend([row for row in measured() if row.values]),
        "\n[Results](docs/results.md) has all measured tables and figures of the papers, with the "
        "commands that reproduce them.",
    ])  # fmt: skip
    before, after = text.partition(begin)[0], text.partition(end)[2]
    return f"{before}{begin}\n{inner}\n{end}{after}"


def legend(rows: Sequence[Measured]) -> str:
    """Returns a list that explains the columns of the summary table."""
    names = {row.claim.attack for row in rows}
    attacks = [f"`{name}` {text}." for name, text in ATTACKS.items() if name in names]
    return "\n".join([
        *([f"- **Paper's attack.** {' '.join(attacks)}"] if attacks else []),
        "- **Scale.** `small` is for 2 CPU cores, with fewer images, epochs or channels than in "
        "the paper. This alone lowers accuracies. `paper` has the paper's settings.",
        "- **Intervals** (+-) are 95% confidence intervals of the mean over seeds. With few seeds "
        "they are wide.",
    ])  # fmt: skip


def draw_claims(rows: list[Measured]) -> None:
    """Draws three bars for each claim: published, under the same attack, and in the worst case."""
    figure, (axis,) = new_figure(9.0, 0.8 + 0.55 * max(1, len(rows)), 1)
    for place, row in enumerate(rows):
        values = (row.published, *(mean(v) for v in row.values[1:]))
        for number, (value, color) in enumerate(zip(values, COLORS.values(), strict=True)):
            if value is not None:
                bar = axis.barh(place + 0.25 * (number - 1), 100 * value, 0.23, color=color)
                # The label tells a bar of length 0 from a missing one.
                axis.bar_label(bar, fmt="%.0f", fontsize=6, padding=2)
    labels = [f"{row.claim.defence}\n{row.claim.setting}" for row in rows]
    axis.set_yticks(range(len(rows)), labels, fontsize=7)
    axis.invert_yaxis()
    axis.set_xlim(0, 100)
    axis.set_xlabel("robust accuracy, %")
    for label, color in COLORS.items():
        axis.barh([0], [0], color=color, label=label)
    axis.legend(fontsize=7, loc="lower right")
    axis.spines[["top", "right"]].set_visible(False)
    PICTURES.mkdir(parents=True, exist_ok=True)
    figure.savefig(PICTURES / "claims.png")


COLORS = {
    "paper's attack, published": "#b0b7c3",
    "paper's attack, measured": "#4c78a8",
    "worst case, measured": "#d1495b",
}
# Columns of attacks whose names do not say what they are.
ATTACKS = {
    "0.02, behind TVM": "is FGSM at 0.02, with TVM between the attack and the network",
    "FGSM 1.0": "is FGSM at epsilon_ref, the radius at which FGSM fools the Deep Defense network "
    "on half of the images, so that its accuracy is 50% by definition",
    "transfer 8": "is FGSM at 8/255 on the undefended network",
}


def provenance(runs: list[dict[str, Any]]) -> str:
    """Returns the commands and machines, without the folders of the data and the results."""
    commands = {
        re.sub(r"--output \S+", "", re.sub(r"--data-dir \S+", "--data-dir DIR", run["command"]))
        for run in runs
    }
    machines = sorted({run["machine"] for run in runs if "machine" in run})
    commands = sorted(" ".join(command.split()) for command in commands)
    return "\n".join(
        [
            "\nTo reproduce:\n",
            *(f"    {command}" for command in commands),
            "",
            *(f"Measured on {name}." for name in machines),
        ]
    )


def tuning() -> str:
    """Returns the section with the trials of `examples/tune.py`."""
    parts = [
        "## Tuning the weight of a defence\n",
        "The weights are chosen by KerasTuner's random search. Each trial trains the same small "
        "network with a different weight. Its score is the accuracy of its best epoch under PGD-20 "
        "on held-out images. PGD-20 is a single attack: evaluate the chosen model with "
        "`kr.evaluate`.\n",
        "For the Fisher information, robust accuracy falls as the weight grows: the regularizer "
        "does not defend against white-box attacks here. For TRADES, robust accuracy rises up to a "
        "weight of about 7 and then levels off, while clean accuracy falls.",
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
        parts.append(markdown_table(["weight", "clean accuracy", "accuracy under PGD-20"], rows))
        parts.append(f"\n![Clean and robust accuracy by weight](../images/{path.stem}.png)")
        parts.append(provenance([run]))
    return "\n".join(parts) if len(parts) > 3 else ""


def verdicts() -> str:
    """Returns the section that compares AutoAttack's versions on the same networks."""
    parts = [
        "## AutoAttack: `standard` and `fast`\n",
        "Both versions attack the same networks on the same images. Each network is named after "
        "its training: on clean images (`natural`), by PGD, or by TRADES. `tanh` has tanh features "
        "with an angular penalty, and `WNLL` a WNLL head. The columns `fooled only by` count "
        "images. Gradients are counted per image.\n",
    ]
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
            "network, images, norm, radius", "clean accuracy", "robust accuracy, standard",
            "robust accuracy, fast", "fooled only by standard", "fooled only by fast",
            "gradients, standard", "gradients, fast", "seconds, standard", "seconds, fast",
            "time, fast / standard",
        ]  # fmt: skip
        parts.append(f"### {content['backend']}, {content['machine']}\n")
        parts.append(markdown_table(header, rows))
        parts.append(
            provenance(list(content["cases"].values())) + f"\nMeasured on {content['machine']}.\n"
        )
    return "\n".join(parts) if len(parts) > 2 else ""


def costs() -> str:
    """Returns the section on the costs of losses, attacks, the WNLL head and training."""
    parts = [
        "## Cost\n",
        "Each time is compared with its floor: the time of the passes that the method requires, "
        "measured in the same process. A ratio of 1 means that the library adds no overhead. "
        "[benchmarks/README.md](../../benchmarks/README.md) describes the benchmarks.\n",
        "The floor of a loss consists of these passes:\n",
        "- `step`: an ordinary training step.",
        "- `double step`: an ordinary training step on twice as many images.",
        "- `gradient`: the gradient of the cross-entropy with respect to the images.",
        "- `jacobian`: the gradients of all differences of logits with respect to the images, and "
        "a forward pass.",
        "- `penalty step`: a training step with a penalty on the norm of the gradient with respect "
        "to the images, which takes a second derivative.",
        "- `forward`: a forward pass of the classifier.",
        "- `denoiser step`: a training step of the denoiser in front of the frozen classifier.",
    ]
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
        parts.append(
            markdown_table(["loss", "ms", "time / ordinary step", "time / floor", "floor"], rows)
        )
        parts.append(
            provenance(list(content["cases"].values())) + f"\nMeasured on {content['machine']}."
        )
        if TABLE_I.keys() <= content["cases"].keys():
            parts.append(beside_table_i(content["cases"]))
    for name, title, floor in (
        (
            "attacks", "Attacks",
            "The floor of an attack is the time of the gradients and forward passes that it "
            "reports in its result.",
        ),
        (
            "wnll", "The WNLL head",
            "The floor is the same pass of a ResNet-20 with a dense layer instead of the head.",
        ),
    ):  # fmt: skip
        for path in sorted(RESULTS.glob(f"{name}-*.json")):
            content = json.loads(path.read_text())
            rows = []
            for case, values in content["cases"].items():
                if "libraries" in values:
                    values = values["libraries"]["keras_robust"]
                if "ratio_to_floor" in values:
                    rows.append([case, f"{values['ratio_to_floor']:.2f}"])
            parts.append(f"\n### {title}: {content['backend']}, {content['machine']}\n")
            parts.append(f"{floor}\n")
            parts.append(markdown_table(["case", "time / floor"], rows))
            parts.append(
                provenance(list(content["cases"].values())) + f"\nMeasured on {content['machine']}."
            )
    for path in sorted(RESULTS.glob("training-*.json")):
        parts.append(training(json.loads(path.read_text())))
    return "\n".join(parts)


def training(content: dict[str, Any]) -> str:
    """Returns the times of gradients, training steps and PGD on one machine."""
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
        f"\n### PGD and adversarial training: {content['backend']}, {content['machine']}\n",
        "The floor of an attack is the time of its gradients. That of an adversarial training step "
        "includes an ordinary training step.\n",
        markdown_table(
            ["network, part", "ms", "images per second", "time / floor", "seconds to compile"], rows
        ),
        provenance(list(content["cases"].values())) + f"\nMeasured on {content['machine']}.",
    ])  # fmt: skip


def beside_table_i(cases: dict[str, Any]) -> str:
    """Returns a table that compares training times with Table I of Schwartz and Ditzler."""
    fisher, fisher_in_paper = next(iter(TABLE_I.items()))
    least = cases[fisher]["milliseconds_per_sample"]
    rows = []
    for name, theirs in TABLE_I.items():
        ours = cases[name]["milliseconds_per_sample"]
        floor = 1000 * cases[name]["floor_median_seconds"] / cases[name]["batch_size"]
        rows.append([
            name, f"{ours:.1f} / {theirs}", f"{ours / least:.2f} / {theirs / fisher_in_paper:.2f}",
            f"{floor / least:.2f}",
        ])  # fmt: skip
    return "\n".join([
        "\nThe next table compares the last three losses with Table I of Schwartz and Ditzler, "
        "which was measured on a GPU. Cells with two values: measured here / published.\n",
        markdown_table(
            ["loss", "ms per sample", "time / Fisher information", "floor / Fisher information"],
            rows,
        ),
        "\nLatent disparity passes twice as many images through the network as the Fisher "
        "information. A GPU with spare capacity may hide this, but a CPU does not. Guided "
        "denoising has a lower ratio than in the paper, although its denoiser needs more "
        "multiplications than the network. The convolutions of the denoiser have larger images and "
        "fewer channels.",
    ])  # fmt: skip


def measurements() -> str:
    """Returns the page on tuning, AutoAttack's versions, and cost."""
    sections = [
        "# Tuning, AutoAttack versions, and cost\n\nIn the commands, DIR is a folder of TensorFlow "
        "Datasets.",
        tuning(), verdicts(), costs(),
    ]  # fmt: skip
    return "\n\n".join(section.rstrip() for section in sections if section)


def pages() -> dict[str, str]:
    """Draws the pictures, and returns the text of each page by its path without ".md"."""
    texts = {"README": readme(), "docs/results": opening()}
    texts["docs/results/measurements"] = measurements()
    texts |= {f"docs/results/{paper.key}": page(paper) for paper in PAPERS.values()}
    return {name: text.rstrip() + "\n" for name, text in texts.items()}


def main() -> None:
    for name, text in pages().items():
        path = ROOT / f"{name}.md"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        print(path)


if __name__ == "__main__":
    main()
