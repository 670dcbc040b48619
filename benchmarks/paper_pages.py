"""Writes a page for each paper, with its tables as measured here and as published."""

import functools
import pathlib
import re
import shutil
import sys
from typing import Any, NamedTuple

import numpy as np

ROOT = pathlib.Path(__file__).parent.parent
sys.path.append(str(ROOT / "examples" / "reproductions"))
from papers import RECORDS  # noqa: E402
from records import Records, mean_and_half_width  # noqa: E402
from tables import SCALES, Paper, Table  # noqa: E402

PICTURES = ROOT / "docs" / "images" / "results"
# Columns that are not fractions, and are not shown in percent.
_FORMATS = {"rho_2": "{:.3f}", "C&W, median L2": "{:.2f}", "epsilon": "{:.3f}"}
Group = dict[str, list[dict[str, Any]]]


class Curve(NamedTuple):
    """A line, with the label of its x axis."""

    x: list[float]
    y: list[float]
    label: str


def markdown_table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


@functools.cache
def all_records(paper: str) -> dict[str, Any]:
    return Records(RECORDS / f"{paper}.json").found


def found(table: Table, scale: str) -> Group:
    """Returns the records of a table at one scale, by row. Each row has one record per seed."""
    rows: Group = {}
    for record in table.rows(all_records(table.paper), scale):
        rows.setdefault(record["row"], []).append(record)
    return rows


def page(paper: Paper) -> str:
    """Returns the page of a paper: the measured tables, then a list of the missing ones."""
    parts = [f"# {paper.title}\n", *([f"{paper.introduction}\n"] if paper.introduction else [])]
    missing = []
    for table in paper.tables.values():
        sections = [section(table, scale) for scale in SCALES if found(table, scale)]
        if not sections:
            missing.append(table)
            continue
        parts += [f"\n## {table.name}: {table.shows}\n", *sections]
        if table.finding:
            parts.append(f"{table.finding}\n")
    if missing:
        parts += [
            "\n## Not measured yet\n",
            "The commands below are for the paper's scale. For small scale, use `--scale small`. "
            "Times are estimates, for a large GPU at the paper's scale and for 2 CPU cores at "
            "small scale.\n",
            *(f"- {missing_line(table)}" for table in missing),
        ]
    return "\n".join(parts).rstrip() + "\n"


def missing_line(table: Table) -> str:
    """Returns a line with the caption of a table, the command that measures it, and its time."""
    small = (
        "" if table.minutes["small"] is None else f"{table.minutes['small']} min at small scale, "
    )
    command = re.sub("^KERAS_BACKEND=jax ", "", table.command("paper"))
    return (
        f"{table.name}: {table.shows}. `{command}` ({small}{table.minutes['paper']} min at the "
        "paper's scale)"
    )


def section(table: Table, scale: str) -> str:
    """Returns the measured values of a table at one scale, and how they were measured."""
    rows = found(table, scale)
    records = [record for seeds in rows.values() for record in seeds]
    name = "Small scale" if scale == "small" else "The paper's scale"
    parts = [f"**{name}.** {'; '.join(conditions(records))}.\n"]
    if not table.is_complete(all_records(table.paper), scale):
        parts.append("This table is incomplete. The command below measures the missing rows.\n")
    values = [record["values"] for record in records]
    if any(isinstance(value, float | str) for given in values for value in given.values()):
        parts.append(numbers(table, rows) + "\n")
    pictures = drawn(table, scale, rows)
    parts += [
        f"![{table.name}: {table.shows}](../images/results/{path.name})\n" for path in pictures
    ]
    commands = sorted({record["command"] for record in records})
    made = sorted({f"{record['machine']}, with {record['versions']}" for record in records})
    parts.append("\n".join(["To reproduce:", "", *(f"    {c}" for c in commands), ""]))
    parts.append(f"Measured on {'; '.join(made)}.\n")
    return "\n".join(parts)


def conditions(records: list[dict[str, Any]]) -> list[str]:
    """Returns each combination of data set, images and epochs that the rows have."""
    names = {"cifar10_jpeg": "CIFAR-10 after lossy JPEG compression", "mnist": "MNIST"}
    names["fashion_mnist"] = "Fashion-MNIST"
    lines: dict[str, None] = {}
    for record in (r for r in records if "tested" in r):
        data = names.get(record["dataset"], record["dataset"])
        images, tested = (
            f"{n:,}" if isinstance(n := record[key], int) else n for key in ("images", "tested")
        )
        text = f"{data}: {images} training images, {record['epochs']} epochs, {tested} test images"
        lines[text] = None
    return list(lines)


def numbers(table: Table, rows: Group) -> str:
    """Returns a table of the numbers and texts, measured / published, with notes above it."""
    columns: dict[str, None] = {}
    alone = {row: seeds for row, seeds in rows.items() if list(seeds[0]["values"]) == ["epsilon"]}
    notes = [f"{row} = {shown('epsilon', [s[0]['values']['epsilon']])}" for row, s in alone.items()]
    rows = {row: seeds for row, seeds in rows.items() if row not in alone}
    for seeds in rows.values():
        for key, value in seeds[0]["values"].items():
            if isinstance(value, float | str):
                columns[key] = None
    several = any(len(seeds) > 1 for seeds in rows.values())
    body = []
    for row, seeds in rows.items():
        published = table.published.get(row, {})
        cells = [row, *([str(len(seeds))] if several else [])]
        for column in columns:
            values = [s["values"][column] for s in seeds if column in s["values"]]
            ours = shown(column, values) if values else ""
            theirs = published.get(column)
            cells.append(ours if theirs is None else f"{ours} / {shown(column, [theirs])}")
        body.append(cells)
    sentences = ["Cells with two values: measured here / published."] if table.published else []
    if several:
        sentences.append(
            "Values over several seeds: mean +- half-width of the 95% confidence interval."
        )
    if notes:
        sentences.append("; ".join(notes) + ".")
    note = " ".join(sentences) + "\n\n" if sentences else ""
    return note + markdown_table(["", *(["seeds"] if several else []), *columns], body)


def shown(column: str, values: list[Any]) -> str:
    """Formats the mean over seeds, and half the width of its 95% confidence interval.

    A text is returned as it is.
    """
    if isinstance(values[0], str):
        return values[0]
    mean, half = mean_and_half_width(values)
    if column in _FORMATS:
        return _FORMATS[column].format(mean)
    if column.endswith((", s", "per sample")):
        return f"{mean:,.1f}"
    return f"{100 * mean:.1f}%" + (f" +- {100 * half:.1f}" if len(values) > 1 else "")


def drawn(table: Table, scale: str, rows: Group) -> list[pathlib.Path]:
    """Draws the values that are not scalars, and returns the paths of the pictures."""
    PICTURES.mkdir(parents=True, exist_ok=True)
    path = PICTURES / table.picture(scale)
    by_seed = {row: [record["values"] for record in seeds] for row, seeds in rows.items()}
    values = {row: seeds[0] for row, seeds in by_seed.items()}
    sheet = RECORDS / table.picture(scale)
    if sheet.exists():
        shutil.copyfile(sheet, path)
        return [path]
    if all("places" in given for given in values.values()):
        draw_places(values, path)
        return [path]
    curves = {
        row: lists(seeds, table.lists_over, table.lists_from) for row, seeds in by_seed.items()
    }
    if table.name.startswith("Figure"):
        for row, seeds in by_seed.items():
            curves[row] = {**series(seeds, table.columns_over), **curves[row]}
        add_gains(curves)
    if not any(curves.values()):
        return []
    draw_curves(curves, path)
    return [path]


def lists(seeds: list[dict[str, Any]], label: str, start: int = 1) -> dict[str, Curve]:
    """Returns the values that are lists, as lines over the numbers `start`, `start + 1`, ...

    The lines show the mean over seeds.
    """
    names = [k for k, v in seeds[0].items() if isinstance(v, list) and len(v) > 1]
    means = {name: np.mean([values[name] for values in seeds], axis=0) for name in names}
    return {
        name: Curve(list(range(start, start + len(mean))), mean.tolist(), label)
        for name, mean in means.items()
    }


def series(seeds: list[dict[str, Any]], label: str) -> dict[str, Curve]:
    """Returns columns whose names end in a number, such as "transfer 8", as lines over this number.

    The lines show the mean over seeds, and start at 0 with clean accuracy.
    """
    points: dict[str, dict[float, float]] = {}
    for column in seeds[0]:
        match = re.fullmatch(r"(.+) ([0-9.]+)", column)
        if match and isinstance(seeds[0][column], float):
            mean = float(np.mean([values[column] for values in seeds]))
            start = {0.0: float(np.mean([values["clean"] for values in seeds]))}
            points.setdefault(match[1], start)[float(match[2])] = mean
    return {name: Curve(list(f), list(f.values()), label) for name, f in points.items()}


def add_gains(curves: dict[str, dict[str, Curve]]) -> None:
    """Adds the gain of each row over the undefended network, if there is one."""
    if "undefended" not in curves or "transfer" not in curves["undefended"]:
        return
    base = curves["undefended"]["transfer"]
    for given in curves.values():
        gain = (np.array(given["transfer"].y) - base.y).tolist()
        given["gain over undefended, transfer"] = base._replace(y=gain)


def new_figure(width: float, height: float, columns: int) -> tuple[Any, Any]:
    """Returns a figure without a display, and its row of axes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(1, columns, squeeze=False)[0]


def draw_places(values: dict[str, Any], path: pathlib.Path) -> None:
    """Draws a scatter plot of features for each row, coloured by class."""
    figure, panels = new_figure(3.4 * len(values), 3.4, len(values))
    for axis, (row, given) in zip(panels, values.items(), strict=True):
        axis.scatter(*given["places"], c=given["classes"], cmap="tab10", s=5)
        accuracy = f", accuracy {given['accuracy']:.1%}" if "accuracy" in given else ""
        axis.set_title(row + accuracy, fontsize=8)
        axis.set_xticks([])
        axis.set_yticks([])
    figure.savefig(path)


def draw_curves(curves: dict[str, dict[str, Curve]], path: pathlib.Path) -> None:
    """Draws a panel for each quantity, with a line for each row."""
    quantities = list(dict.fromkeys(key for given in curves.values() for key in given))
    legend_width = 2.4
    figure, panels = new_figure(3.6 * len(quantities) + legend_width, 3.4, len(quantities))
    for axis, quantity in zip(panels, quantities, strict=True):
        for row, given in curves.items():
            if quantity in given:
                curve = given[quantity]
                axis.plot(curve.x, curve.y, label=row, lw=1.4)
                axis.set_xlabel(curve.label, fontsize=8)
                # No tick is at a fraction of an epoch or layer.
                axis.locator_params(axis="x", integer=max(curve.x) >= 1)
        axis.set_title(quantity, fontsize=9)
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, fontsize=7, loc="outside right upper")
    figure.savefig(path)
