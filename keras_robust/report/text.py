"""Reports as text."""

from collections.abc import Mapping

from keras_robust.report.class_accuracy import COLUMNS
from keras_robust.report.data import ReportData
from keras_robust.report.row import NORMS, shown_norms
from keras_robust.text_table import text_table


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
    table = []
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
    lines.append(text_table(header, table))
    if per_class:
        classes = [(one.name, *one.cells) for one in report.per_class]
        lines += ["", text_table(COLUMNS, classes)]
    lines += ["", report.statement]
    if report.class_statement:
        lines.append(report.class_statement)
    if not report.failed_checks:
        lines.append(report.verdict)
    return "\n".join(lines)


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
    rows = [
        (name, *(f"{report.rows[index].accuracy:.1%}" for report in reports.values()))
        for index, name in enumerate(next(iter(names)))
    ]
    return text_table(["", *reports], rows, min_width=8)
