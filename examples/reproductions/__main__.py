"""Reproduces the tables and figures of the papers that `keras_robust` implements.

    python examples/reproductions list
    python examples/reproductions run weight_penalization 'Table 4' --data-dir DIR
    python examples/reproductions plan --minutes 60 --data-dir DIR
    python examples/reproductions data --data-dir DIR --output DATA

The commands are:

- `list` shows all tables and figures, and which of them have been measured.
- `run` measures one table or figure.
- `plan` measures the missing tables and figures that fit into `--minutes`, by priority.
- `data` writes files for a machine without TensorFlow. On that machine, pass their folder as
  `--data-dir`.

There are two scales. "small" is for 2 CPU cores, and uses fewer images, epochs or channels. "paper"
has the paper's settings, and is for a large GPU.

Each row is written to the folder `--results` as soon as it has been measured. The folder `--cache`
holds trained networks and the checkpoints of unfinished trainings. To resume an interrupted
command, run it again.
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
            ("list", "show all tables and figures, and which of them have been measured"),
            ("run", "measure one table or figure"),
            ("plan", "measure the missing tables and figures that fit into the time"),
            ("data", "write data files for a machine without TensorFlow"),
        )
    }
    add["run"]("paper", choices=PAPERS, help="key of the paper")
    add["run"]("table", help="name of the table or figure, such as 'Table 4'; see `list`")
    add["plan"]("--minutes", type=float, required=True, help="available time")
    add["run"]("--minutes", type=float, help="start nothing after this time; default: no limit")
    add["data"](
        "--names", nargs="+", choices=data.NAMES, default=list(data.NAMES), help="default: all"
    )
    add["data"]("--output", type=pathlib.Path, required=True, help="folder to write to")
    for name in ("run", "plan", "data"):
        add[name]("--data-dir", default=None, help="folder of the data; default: TFDS_DATA_DIR")
    for name in ("run", "plan"):
        add[name](
            "--scale", choices=SCALES, default="small", help="small: 2 CPU cores; paper: large GPU"
        )
        add[name](
            "--cache", type=pathlib.Path, default=pathlib.Path("reproductions"),
            help="folder of trained networks; default: reproductions",
        )  # fmt: skip
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
    """Prints a row for each table: what has been measured, or about how long it takes."""
    console = rich.console.Console(width=None if sys.stdout.isatty() else 160)
    for paper in PAPERS.values():
        title = f"{paper.key}: {paper.title}"
        grid = rich.table.Table("", "shows", "small", "paper's scale", title=title)
        for table in paper.tables.values():
            grid.add_row(table.name, table.shows, *(state(args, table, s) for s in SCALES))
        console.print(grid)
    console.print(
        "Times are estimates, for 2 CPU cores at small scale and for a large GPU at the paper's. "
        "To measure a table: python examples/reproductions run PAPER TABLE --scale SCALE, where "
        f"PAPER is one of {', '.join(PAPERS)}."
    )


def state(args: argparse.Namespace, table: Table, scale: str) -> str:
    minutes = table.minutes[scale]
    run = Run(table, scale, None, args.results, pathlib.Path())
    rows = run.rows
    if not rows:
        return "-" if minutes is None else f"not run, about {minutes} min"
    machines = sorted({row["machine"] for row in rows})
    status = "measured" if run.is_complete else "incomplete"
    return f"{status}, {len(rows)} rows, {'; '.join(machines)}"


def measure(args: argparse.Namespace, tables: list[Table], deadline: float | None) -> None:
    """Measures the tables in turn.

    `plan` skips the tables that are complete, and those that would not be finished in time.
    """
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
            print("Time is up. Run the same command again to resume.")
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
            chosen = sorted(all_tables(), key=lambda table: table.priority)
        measure(args, chosen, deadline)


if __name__ == "__main__":
    main()
