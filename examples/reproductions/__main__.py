"""Reproduces the tables and figures of the papers that `keras_robust` implements.

    python examples/reproductions list
    python examples/reproductions run weight_penalization 'Table 4' --data-dir DIR
    python examples/reproductions plan --minutes 60 --data-dir DIR
    python examples/reproductions data --data-dir DIR --output DATA

`list` shows every table and figure, and what has been measured of it. `run` measures one. `plan`
measures those that are missing and fit into so many minutes, the most wanted first. `data` writes
files that a machine without TensorFlow reads: pass their folder as `--data-dir` there.

There are two scales: "small" is for 2 CPU cores, with fewer images, epochs or channels; "paper" has
the paper's settings, for a large GPU. A row is written to `--results` as soon as it is measured.
Trained networks, and those in training, are in `--cache`. An interrupted command goes on where it
stopped.
"""

import argparse
import pathlib
import sys
import time

import data
import rich.console
import rich.table
from papers import PAPERS, RECORDS
from tables import SCALES, Run, Table, TimeIsUpError


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python examples/reproductions",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    add = {
        name: commands.add_parser(name, help=text).add_argument
        for name, text in (
            ("list", "show every table and figure, and what has been measured of it"),
            ("run", "measure one table or figure"),
            ("plan", "measure what is missing and fits into the time"),
            ("data", "write the data for a machine without TensorFlow"),
        )
    }
    add["run"]("paper", choices=PAPERS)
    add["run"]("table", help="such as 'Table 4'; `list` shows their names")
    add["plan"]("--minutes", type=float, required=True, help="how long it may take")
    add["run"]("--minutes", type=float, help="begin nothing after so long; default: no limit")
    add["data"]("--names", nargs="+", choices=data.NAMES, default=list(data.NAMES))
    add["data"]("--output", type=pathlib.Path, required=True, help="folder of the files")
    for name in ("run", "plan", "data"):
        add[name]("--data-dir", default=None, help="folder of the data; default: TFDS_DATA_DIR")
    for name in ("run", "plan"):
        add[name]("--scale", choices=SCALES, default="small")
        add[name]("--cache", type=pathlib.Path, default=pathlib.Path("reproductions"))
    for name in ("list", "run", "plan"):
        add[name]("--results", type=pathlib.Path, default=RECORDS, help="folder of the records")
    args = parser.parse_args()
    if args.command == "run" and args.table not in PAPERS[args.paper].tables:
        names = ", ".join(repr(name) for name in PAPERS[args.paper].tables)
        parser.error(f"argument table: must be one of {names}. Received: {args.table!r}")
    return args


def all_tables() -> list[Table]:
    return [table for paper in PAPERS.values() for table in paper.tables.values()]


def show(args: argparse.Namespace) -> None:
    """Prints a line for each table: how much of it is on record, or what makes it."""
    console = rich.console.Console(width=None if sys.stdout.isatty() else 160)
    for paper in PAPERS.values():
        title = f"{paper.key}: {paper.title}"
        grid = rich.table.Table("", "shows", "small", "paper's scale", title=title)
        for table in paper.tables.values():
            grid.add_row(table.name, table.shows, *(state(args, table, s) for s in SCALES))
        console.print(grid)
    console.print(
        "Minutes are estimates: at small scale on 2 CPU cores, at the paper's on a large GPU. "
        "To measure one: python examples/reproductions run PAPER TABLE --scale SCALE, where PAPER "
        f"is one of {', '.join(PAPERS)}."
    )


def state(args: argparse.Namespace, table: Table, scale: str) -> str:
    minutes = table.minutes[scale]
    run = Run(table, scale, None, args.results, pathlib.Path())
    rows = run.rows
    if not rows:
        return "-" if minutes is None else f"not run, {minutes} min"
    machines = sorted({row["machine"] for row in rows})
    share = "measured" if run.is_complete else "in part"
    return f"{share}, {len(rows)} rows, {'; '.join(machines)}"


def measure(args: argparse.Namespace, tables: list[Table], deadline: float | None) -> None:
    """Measures the tables one after the other; none begins that would not end in time."""
    for table in tables:
        run = Run(table, args.scale, args.data_dir, args.results, args.cache, deadline)
        if run.is_complete and args.command == "plan":
            continue
        expected = table.minutes[args.scale]
        if expected is None:
            continue
        left = None if deadline is None else (deadline - time.monotonic()) / 60
        if args.command == "plan" and left is not None and expected > left and not run.rows:
            continue
        print(f"\n{table.paper}, {table.name}: {table.shows} (about {expected} min)", flush=True)
        try:
            run()
        except TimeIsUpError:
            print("The time is up. The same command goes on from here.")
            return


def main() -> None:
    args = parse_arguments()
    if args.command == "list":
        show(args)
    elif args.command == "data":
        for name in args.names:
            print(data.write(name, args.data_dir, args.output))
    else:
        minutes = args.minutes
        deadline = None if minutes is None else time.monotonic() + 60 * minutes
        if args.command == "run":
            chosen = [PAPERS[args.paper].tables[args.table]]
        else:
            chosen = sorted(all_tables(), key=lambda table: table.wanted)
        measure(args, chosen, deadline)


if __name__ == "__main__":
    main()
