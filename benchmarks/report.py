"""Writes the results: docs/results.md, the pages in docs/results/, and README's table.

    python benchmarks/report.py

Every number is read from the records in benchmarks/results/, each of which has the command that
made it. `docs/results.md` compares the defences, a page for each paper has its tables, and one more
has what tuning finds, AutoAttack's versions, and what the library's own code costs.
"""

import dataclasses
import json
import re
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
    """A row of the opening table: what a paper claims of a defence, and what is left of it here.

    Args:
        defence: its name.
        paper: key of the paper.
        table: name of the table that has it.
        row: its row there.
        attack: column of the paper's own attack.
        worst: column of the worst case at the same radius.
        setting: data and radius, in a few words.
        cost: name in `benchmarks/losses.py`'s records of what a training step costs.
        clean: column of the accuracy on clean images. Defaults to `"clean"`.
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


CLAIMS = (
    Claim(
        "adversarial training (baseline)", weight_penalization.PAPER, "Table 4",
        "adversarial training", "PGD-40", "worst case", "MNIST, 0.3",
        "adversarial training, PGD-7",
    ),
    Claim(
        "adversarial training (baseline)", weight_penalization.PAPER, "Table 5",
        "adversarial training", "PGD-20", "worst case", "CIFAR-10, 8/255",
        "adversarial training, PGD-7",
    ),
    Claim(
        "tanh + angular", weight_penalization.PAPER, "Table 4", "tanh + angular", "PGD-40",
        "worst case", "MNIST, 0.3", None,
    ),
    Claim(
        "tanh + angular", weight_penalization.PAPER, "Table 5", "tanh + angular", "PGD-20",
        "worst case", "CIFAR-10, 8/255", None,
    ),
    Claim(
        "the same, adversarially trained", weight_penalization.PAPER, "Table 4",
        "tanh + angular, adversarial training", "PGD-40", "worst case", "MNIST, 0.3",
        "adversarial training, PGD-7",
    ),
    Claim(
        "the same, adversarially trained", weight_penalization.PAPER, "Table 5",
        "tanh + angular, adversarial training", "PGD-20", "worst case", "CIFAR-10, 8/255",
        "adversarial training, PGD-7",
    ),
    Claim(
        "Max-Mahalanobis center", weight_penalization.PAPER, "Table 4", "MMC", "PGD-40",
        "worst case", "MNIST, 0.3", "Max-Mahalanobis",
    ),
    Claim(
        "WNLL, adversarial training", graph_interpolation.PAPER, "Table 6", "WNLL", "IFGSM-40",
        "worst case", "MNIST, 0.3", "adversarial training, PGD-7",
    ),
    Claim(
        "WNLL, adversarial training", graph_interpolation.PAPER, "Table 8", "WNLL", "IFGSM-20",
        "worst case", "CIFAR-10, 8/255", "adversarial training, PGD-7",
    ),
    Claim(
        "WNLL, TVM, trained on its images", wnll_defense.PAPER, "Table 5",
        "WNLL, FGSM, original + TVM", "0.02, behind TVM", "0.02, behind TVM", "CIFAR-10, 0.02",
        None, "clean, behind TVM", "WNLL, worst case, original + TVM",
    ),
    Claim(
        "Deep Defense", deep_defense.PAPER, "Table 1", "LeNet, Deep Defense", "FGSM 1.0",
        "worst case 1.0", "MNIST, epsilon_ref", "Deep Defense",
    ),
    Claim(
        "latent disparity", latent_disparity.PAPER, "Figures 2 to 6, Fashion-MNIST", "HLDR",
        "transfer 8", "white-box 8", "Fashion-MNIST, 8/255", "latent disparity, FGSM",
    ),
    Claim(
        "Fisher information", latent_disparity.PAPER, "Figures 2 to 6, Fashion-MNIST", "FIMR",
        "transfer 8", "white-box 8", "Fashion-MNIST, 8/255", "Fisher information",
    ),
    Claim(
        "guided denoiser", latent_disparity.PAPER, "Figures 2 to 6, Fashion-MNIST", "HGD",
        "transfer 8", "white-box 8", "Fashion-MNIST, 8/255", "guided denoising, FGSM",
    ),
    Claim(
        "stability training", latent_disparity.PAPER, "Figures 2 to 6, Fashion-MNIST",
        "stability", "transfer 8", "white-box 8", "Fashion-MNIST, 8/255", "stability training",
    ),
)  # fmt: skip


# Schwartz and Ditzler, Table I: milliseconds per sample, and the benchmark's names for the methods.
PAPER_004 = {
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
    """What is on record of a claim."""

    claim: Claim
    published: float | None
    scale: str
    # Accuracies of each seed: clean, under the paper's attack, in the worst case; or nothing.
    values: tuple[list[float], ...]


def measured() -> list[Measured]:
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
    return rows


def opening() -> str:
    """The first page: a row for each claim, one picture, three sentences."""
    costs = load("losses-amd-epyc-2-cores-tensorflow.json")["cases"]
    rows = []
    for claim, published, scale, values in measured():
        theirs = "no number" if published is None else percent(published)
        cost = "1.0" if claim.cost is None else f"{costs[claim.cost]['ratio_to_step']:.1f}"
        cells = [scale, *(shown("", column) for column in values)] if values else [
            "not measured", "", "", "",
        ]  # fmt: skip
        rows.append([
            claim.defence, claim.setting, f"{claim.attack}: {theirs}", *cells, cost, "none",
            f"[{claim.table}](results/{claim.paper.key}.md)",
        ])  # fmt: skip
    header = [
        "defence", "data, radius", "the paper's attack and claim", "scale", "clean here",
        "the paper's attack here", "worst case here", "a training step costs", "certificate",
        "table",
    ]  # fmt: skip
    draw_claims([row for row in measured() if row.values])
    return "\n".join([
        "# Results\n",
        "Each defence beside the claim of its paper: robust accuracy under the paper's own attack "
        "as published, under the same attack here, and in the worst case over the strongest "
        "attacks of this library. \"small\" is a scale for 2 CPU cores, with fewer images, epochs "
        "or channels than the paper's; accuracies at that scale are lower by themselves. A step "
        "of training costs so many times that of ordinary training (`benchmarks/losses.py`, small "
        "network, TensorFlow, AMD EPYC, 2 cores). None of these defences has a certificate: "
        "its accuracy can only fall. `kr.evaluation.certify` gives one by randomized smoothing "
        "([evaluation](evaluation.md)).\n",
        markdown_table(header, rows),
        "\n![What is claimed, what the paper's attack gives, and the worst case]"
        "(images/results/claims.png)\n",
        CONCLUSION,
        "\nThe tables and figures, each with the command that makes it:\n",
        *(f"- [{paper.title}](results/{paper.key}.md)" for paper in PAPERS.values()),
        "- [Tuning, AutoAttack's versions, and cost](results/measurements.md)",
    ])  # fmt: skip


def readme() -> str:
    """The README, with what has been measured of the claims between its marks."""
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
    header = ["defence", "data, radius", "the paper's attack", "published", "here",
              "worst case here", "scale"]  # fmt: skip
    inner = "\n".join([
        "Robust accuracy as published, under the same attack here, and under the strongest attacks "
        "here. Small scale means 2 CPU cores: fewer images, epochs or channels than the paper's.\n",
        markdown_table(header, rows),
        "\n[Results](docs/results.md) has every table of the papers, each with its command.",
    ])  # fmt: skip
    before, after = text.partition(begin)[0], text.partition(end)[2]
    return f"{before}{begin}\n{inner}\n{end}{after}"


def draw_claims(rows: list[Measured]) -> None:
    """Three bars for each claim: published, the same attack here, worst case."""
    figure, (axis,) = new_figure(9.0, 0.8 + 0.55 * max(1, len(rows)), 1)
    for place, row in enumerate(rows):
        values = (row.published, *(sum(v) / len(v) for v in row.values[1:]))
        for number, (value, color) in enumerate(zip(values, COLORS.values(), strict=True)):
            if value is not None:
                axis.barh(place + 0.25 * (number - 1), 100 * value, 0.23, color=color)
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
    "published": "#b0b7c3",
    "the paper's attack, here": "#4c78a8",
    "worst case, here": "#d1495b",
}
CONCLUSION = (
    "Each defence that is measured here keeps less in the worst case than under the attack of its "
    "paper. A published accuracy is an upper bound, which a better attack lowers: compare defences "
    "by the worst case. Adversarial training is the baseline that a defence has to beat there."
)


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
        parts.append(markdown_table(["weight", "clean", "under PGD-20"], rows))
        parts.append(f"\n![Both accuracies against the weight](../images/{path.stem}.png)")
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
        parts.append(markdown_table(header, rows))
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
        parts.append(markdown_table(["", "ms", "/ ordinary step", "/ floor", "floor"], rows))
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
            parts.append(markdown_table(["", "times the floor"], rows))
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
        markdown_table(["", "ms", "images/s", "times the floor", "seconds to compile"], rows),
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
        markdown_table(
            ["", "ms per sample", "/ Fisher information", "floor / Fisher information"], rows
        ),
    ])  # fmt: skip


def measurements() -> str:
    sections = [
        "# Tuning, AutoAttack's versions, and cost\n\nDIR is a folder of TensorFlow Datasets.",
        tuning(), verdicts(), costs(),
    ]  # fmt: skip
    return "\n\n".join(section.rstrip() for section in sections if section)


def pages() -> dict[str, str]:
    """The text of each page, by its path without ".md"; draws their pictures."""
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
