"""A report as one self-contained HTML page."""

import base64
import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape

from keras_robust.report.check_result import CheckResult
from keras_robust.report.class_accuracy import COLUMNS as CLASS_COLUMNS
from keras_robust.report.class_accuracy import ClassAccuracy
from keras_robust.report.data import ReportData
from keras_robust.report.row import CLEAN, COSTS, NORMS, Row, shown_norms

_TITLE = "Robustness report"
_STYLE = """
:root { color-scheme: light; }
body { background: #fff; color: #1a1a1a; font: 16px/1.5 system-ui, sans-serif; margin: 0 auto;
  max-width: 70rem; padding: 1rem; overflow-wrap: break-word; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0.5rem 0; }
h2 { border-bottom: 1px solid #c8c8c8; font-size: 1.25rem; margin: 2rem 0 0.75rem; }
p { margin: 0.5rem 0; max-width: 50rem; }
.statement { font-size: 1.15rem; }
.verdict { border: 2px solid #6b6b6b; padding: 0.5rem 1rem; }
.verdict ul { margin: 0.25rem 0; padding-left: 1.25rem; }
.verdict.failed { background: #fdeaea; border: 5px solid #b00020; }
.verdict.failed strong { color: #8c0019; font-size: 1.3rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.95rem; font-variant-numeric: tabular-nums; }
th, td { border-bottom: 1px solid #dcdcdc; padding: 0.35rem 0.6rem; text-align: left;
  vertical-align: top; }
thead th { border-bottom: 2px solid #6b6b6b; vertical-align: bottom; }
th.number, td.number { text-align: right; }
td.number, td.status { white-space: nowrap; }
tbody th { min-width: 7rem; }
td.sentence { min-width: 14rem; }
td.bar { min-width: 8rem; }
td.bar div { height: 1.1em; }
tr.failed > * { background: #fdeaea; border-bottom-color: #b00020; }
tr.failed td.status { color: #8c0019; font-weight: 700; }
figure { margin: 1rem 0; }
img { height: auto; max-width: min(100%, 48rem); }
img.wide { max-width: 100%; }
code { font-family: ui-monospace, monospace; font-size: 0.9em; overflow-wrap: anywhere; }
@media print {
  body { font-size: 9pt; max-width: none; padding: 0; }
  .scroll { overflow: visible; }
  table { font-size: 8pt; }
  th, td { padding: 0.15rem 0.3rem; }
  tbody th { min-width: 0; }
  img { max-width: 12cm; }
  figure, tr, .verdict { break-inside: avoid; }
  h2 { break-after: avoid; }
  * { print-color-adjust: exact; }
}
"""


def page(report: ReportData, pictures: Mapping[str, bytes]) -> str:
    """Returns the report as an HTML page.

    Args:
        report: the report.
        pictures: mapping of the names that `Report.save` gives the plots to the contents of their
            PNG files.
    """
    sections = [
        f"<h1>{_TITLE}</h1>",
        _verdict(report),
        f'<p class="statement">{escape(report.statement)}</p>',
        _section(
            "Accuracy",
            _accuracies(report),
            _picture(pictures, "accuracy", "The accuracies in the table, as bars"),
        ),
    ]
    if report.per_class:
        sections.append(_section("Accuracy by class", _classes(report)))
    if report.checks:
        sections.append(_section("Checks", _checks(report.checks)))
    for axis, curves in report.curves.items():
        heading = f"Accuracy over {axis}"
        picture = _picture(pictures, heading, "The accuracies in the table below, as curves")
        sections.append(_section(heading, picture, _curves(heading, axis, curves)))
    if "samples" in pictures:
        text = (
            "Adversarial examples of the attack named above them. From top to bottom: the clean "
            "image with its true class, the perturbed image with its predicted class, and the "
            "difference."
        )
        sections.append(_section("Samples", _picture(pictures, "samples", text), f"<p>{text}</p>"))
    if "geometry" in pictures:
        text = (
            "Features of clean and attacked images, projected onto a plane. Colours show the true "
            "classes. Crosses mark misclassified images."
        )
        picture = _picture(pictures, "geometry", text)
        sections.append(_section("Geometry of the features", picture, f"<p>{text}</p>"))
    sections.append(_section("Settings and environment", _facts(report)))
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_TITLE}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(sections)
        + "\n</body>\n</html>\n"
    )


def _section(heading: str, *parts: str) -> str:
    return "\n".join([f"<section>\n<h2>{escape(heading)}</h2>", *parts, "</section>"])


def _verdict(report: ReportData) -> str:
    failed = "".join(
        f"<li>{escape(check.name)}: {escape(check.sentence)}</li>" for check in report.failed_checks
    )
    if not failed:
        return f'<div class="verdict" role="status"><strong>{escape(report.verdict)}</strong></div>'
    return (
        f'<div class="verdict failed" role="alert"><strong>{escape(report.verdict)}</strong>'
        f"<ul>{failed}</ul></div>"
    )


def _table(
    name: str,
    columns: Iterable[str],
    rows: Iterable[str],
    text_columns: Iterable[str] = (),
) -> str:
    head = "".join(
        f'<th scope="col"{"" if n == 0 or column in text_columns else " class=number"}>'
        f"{escape(column)}</th>"
        for n, column in enumerate(columns)
    )
    identifier = escape(name.lower().replace(" ", "-"))
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(name)}">\n'
        f'<table id="{identifier}">\n'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n"
        + "\n".join(rows)
        + "\n</tbody>\n</table></div>"
    )


def _row(name: str, cells: Iterable[str], note: str = "") -> str:
    data = "".join(f'<td class="number">{escape(cell)}</td>' for cell in cells)
    heading = f"{escape(name)}<br>{escape(note)}" if note else escape(name)
    return f'<tr><th scope="row">{heading}</th>{data}</tr>'


def _accuracies(report: ReportData) -> str:
    caption = (
        f"{report.num_examples} examples. Norms are in units of the images, and cover only the "
        "perturbations that fool the classifier. Gradients and evaluations are means over the "
        "attacked examples."
    )
    if report.worst_case_only:
        caption += " Each attack was run only on the examples that no earlier attack had fooled."
    norms = shown_norms(report.rows)
    columns = (
        "attack",
        "accuracy",
        "95% interval",
        "radius",
        "fooled",
        *(f"{NORMS[norm]}, median (largest)" for norm in norms),
        "gradients + evaluations",
    )
    rows = [_row(row.name, _cells(row, norms), row.note) for row in report.rows]
    return f"<p>{caption}</p>\n" + _table("accuracy", columns, rows)


def _cells(row: Row, norms: Sequence[str]) -> list[str]:
    low, high = row.interval
    fooled = "" if row.num_attacked is None else f"{row.num_fooled} of {row.num_attacked}"
    sizes = [row.perturbation(norm) for norm in norms]
    costs = [cost for name in COSTS if (cost := row.cost(name)) is not None]
    return [
        f"{row.accuracy:.1%}",
        f"{low:.1%} to {high:.1%}",
        row.radius,
        fooled,
        *("" if pair is None else f"{pair[0]:.3g} ({pair[1]:.3g})" for pair in sizes),
        " + ".join(f"{cost:,.{0 if cost >= 100 else 1}f}" for cost in costs),
    ]


def _classes(report: ReportData) -> str:
    caption = (
        f"{report.class_statement} The dark part of each bar ends at the worst-case accuracy, the "
        "light part at the clean accuracy."
    )
    rows = [
        _row(one.name, one.cells).removesuffix("</tr>") + f"{_bar(one)}</tr>"
        for one in report.per_class
    ]
    table = _table("accuracy-by-class", (*CLASS_COLUMNS, ""), rows)
    return f"<p>{escape(caption.strip())}</p>\n{table}"


def _bar(one: ClassAccuracy) -> str:
    """Returns a cell with a bar, on which the full width is an accuracy of 100%.

    The bar is dark up to the worst-case accuracy and light up to the clean accuracy.
    """
    dark, light = (100 * (share or 0) for share in (one.worst_case, one.accuracy.get(CLEAN)))
    colours = f"#1f77b4 {dark:.1f}%, #aec7e8 0 {light:.1f}%, transparent 0"
    return f'<td class="bar"><div style="background:linear-gradient(90deg,{colours})"></div></td>'


def _checks(checks: Iterable[CheckResult]) -> str:
    rows = []
    for check in sorted(checks, key=lambda check: check.status != "FAILED"):
        figures = "<br>".join(
            f"{escape(name)}: {_figure(value)}" for name, value in check.figures.items()
        )
        kind = ' class="failed"' if check.status == "FAILED" else ""
        rows.append(
            f'<tr{kind}><th scope="row">{escape(check.name)}</th>'
            f'<td class="status">{check.status}</td>'
            f'<td class="sentence">{escape(check.sentence)}</td><td>{figures}</td></tr>'
        )
    columns = ("check", "result", "finding", "figures")
    return _table("checks", columns, rows, text_columns=columns)


def _figure(value: float) -> str:
    return f"{value:.4g}" if math.isfinite(value) else "not finite"


def _curves(heading: str, axis: str, curves: Mapping[str, Mapping[float, float]]) -> str:
    xs = sorted({x for curve in curves.values() for x in curve})
    rows = [
        _row(f"{x:.4g}", (f"{c[x]:.1%}" if x in c else "" for c in curves.values())) for x in xs
    ]
    return _table(heading, (axis, *curves), rows)


def _picture(pictures: Mapping[str, bytes], name: str, text: str) -> str:
    data = base64.b64encode(pictures[name]).decode()
    wide = ' class="wide"' if name in ("samples", "geometry") else ""
    return f'<figure><img{wide} alt="{escape(text)}" src="data:image/png;base64,{data}"></figure>'


def _facts(report: ReportData) -> str:
    facts = [
        *report.notes.items(),
        *((f"attack: {row.name}", row.attack) for row in report.rows if row.attack is not None),
        ("seed", str(report.seed)),
        ("batch size", str(report.batch_size)),
        ("date", report.date),
        *report.environment.items(),
    ]
    rows = [
        f'<tr><th scope="row">{escape(name)}</th><td><code>{escape(value)}</code></td></tr>'
        for name, value in facts
    ]
    return _table("facts", ("name", "value"), rows, text_columns=("value",))
