"""Tables as text."""

import io
from collections.abc import Iterable, Sequence

import rich.console
import rich.table
import rich.text


def text_table(header: Sequence[str], rows: Iterable[Sequence[str]], min_width: int = 0) -> str:
    """Formats a table with aligned columns: the first one to the left, the others to the right.

    Args:
        header: the columns' names.
        rows: the cells of each row.
        min_width: int. Least width of all columns but the first. Defaults to `0`.
    """
    table = rich.table.Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
    table.add_column(no_wrap=True)
    for _ in header[1:]:
        table.add_column(no_wrap=True, justify="right", min_width=min_width)
    for row in (header, *rows):
        table.add_row(*(rich.text.Text(cell) for cell in row))
    shown = io.StringIO()
    # Wide enough for any table: nothing is cut or wrapped.
    rich.console.Console(file=shown, width=10_000, color_system=None).print(table)
    return "\n".join(line.rstrip() for line in shown.getvalue().splitlines())
