"""Reports as text."""

from collections.abc import Mapping

from keras_robust.report.class_accuracy import COLUMNS
from keras_robust.report.data import ReportData
from keras_robust.report.row import NORMS, shown_norms


def text_summary(report: ReportData, per_class: bool = False) -> str:
    """Returns a text summary of a report.

    It holds the failed checks, the table of accuracies, with `per_class` that of each class, and
    what the accuracies mean.
    """
    lines = []
    if report.failed_checks:
        found = [f"FAILED: {check.name}. {check.sentence}" for check in report.failed_checks]
        lines = [report.verdict, *found, ""]
    norms = shown_norms(report.rows)
    medians_of = (f"median {NORMS[norm]}" for norm in norms)
    header = ("", "accuracy", "95% interval", "radius", *medians_of, "")
    table: list[tuple[str, ...]] = [header]
    for row in report.rows:
        low, high = row.interval
        medians = [row.perturbation(norm) for norm in norms]
        table.append(
            (
                row.name,
                f"{row.accuracy:.1%}",
                f"{low:.1%} to {high:.1%}",
                row.radius,
                *(f"{pair[0]:.4g}" if pair else "" for pair in medians),
                row.note,
            )
        )
    lines += _aligned(table)
    if per_class:
        classes = [(one.name, *one.cells) for one in report.per_class]
        lines += ["", *_aligned([COLUMNS, *classes])]
    lines += ["", report.statement]
    if report.class_statement:
        lines.append(report.class_statement)
    if not report.failed_checks:
        lines.append(report.verdict)
    return "\n".join(lines)


def _aligned(table: list[tuple[str, ...]]) -> list[str]:
    """Returns the lines of a table with aligned columns. The first row is the header."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = []
    for name, *cells in table:
        line = f"{name:{widths[0]}}"
        for cell, width in zip(cells, widths[1:], strict=True):
            line += f"  {cell:>{width}}"
        lines.append(line.rstrip())
    return lines


def comparison_table(reports: Mapping[str, ReportData]) -> str:
    """Formats the accuracies of several models as a table, one column per model.

    Args:
        reports: mapping of model names to reports with the same rows.

    Returns:
        The table as a string.

    Raises:
        ValueError: if the reports' rows differ.
    """
    names = {tuple(row.name for row in report.rows) for report in reports.values()}
    if len(names) != 1:
        raise ValueError(
            f"The reports must have the same rows. Received: {sorted(map(list, names))}"
        )
    width = max(len(name) for name in next(iter(names)))
    columns = {name: max(len(name), 8) for name in reports}
    lines = [" " * width + "".join(f"  {name:>{size}}" for name, size in columns.items())]
    for index, row_name in enumerate(next(iter(names))):
        cells = "".join(
            f"  {reports[name].rows[index].accuracy:>{size}.1%}" for name, size in columns.items()
        )
        lines.append(f"{row_name:{width}}{cells}")
    return "\n".join(lines)
