"""Papers with their tables and figures, and a run that measures one table."""

import csv
import dataclasses
import pathlib
import re
import shutil
import time
from collections.abc import Callable, Sequence
from typing import Any

import data
import keras
import numpy as np
from data import Split
from records import Records, environment

from keras_robust.whole_file import write_whole

SCALES = ("small", "paper")
# Name of the record that marks a table as complete.
COMPLETE = "complete"


@dataclasses.dataclass(frozen=True)
class Table:
    """A table or a figure of a paper.

    Args:
        paper: key of the paper, which is the name of its module.
        name: name of the table or figure in the paper, such as "Table 4".
        shows: its caption.
        compute: function that measures its rows in a `Run`.
        minutes: estimated time at each scale: "small" on 2 CPU cores, "paper" on one large GPU.
            `None` if the table is not measured at that scale.
        priority: order in a plan. Tables with priority 1 come first.
        published: the published values, by row and column.
        finding: what the measured values show, and where and why they differ from the published
            ones. Defaults to `""`.
        lists_over: label of the x axis on which values that are lists are drawn. Defaults to
            `"epoch"`.
        lists_from: number on the x axis of the first value of a list. Defaults to `1`.
        columns_over: label of the x axis on which columns such as "FGSM 0.1" and "FGSM 0.2" are
            drawn. Defaults to `""`.
    """

    paper: str
    name: str
    shows: str
    compute: Callable[["Run"], None]
    minutes: dict[str, int | None]
    priority: int
    published: dict[str, dict[str, float]]
    finding: str = ""
    lists_over: str = "epoch"
    lists_from: int = 1
    columns_over: str = ""

    def command(self, scale: str) -> str:
        """Returns the command that measures or resumes the table."""
        prefix = "" if keras.backend.backend() == "tensorflow" else "KERAS_BACKEND=jax "
        command = f"{prefix}python examples/reproductions run {self.paper}"
        return f"{command} '{self.name}' --scale {scale}"

    def key(self, scale: str, row: str) -> str:
        """Returns the key of a row in the records."""
        return f"{self.name}, {scale}, {row}"

    def is_complete(self, records: dict[str, Any], scale: str) -> bool:
        return self.key(scale, COMPLETE) in records

    def rows(self, records: dict[str, Any], scale: str) -> list[dict[str, Any]]:
        """Returns the table's records at a scale, one for each row and seed."""
        mine = (self.name, scale)
        return [r for r in records.values() if (r.get("table"), r.get("scale")) == mine]

    def picture(self, scale: str) -> str:
        """Returns the file name of the table's picture."""
        return _slug(f"{self.paper} {self.name} {scale}") + ".png"


class Paper:
    """A paper, with its tables and figures in the order of their definition.

    Args:
        key: name of the paper's module, and of the file of its records.
        title: authors, year and title.
        introduction: Markdown that explains the rows and columns. Defaults to `""`.
    """

    def __init__(self, key: str, title: str, introduction: str = "") -> None:
        self.key, self.title, self.introduction = key, title, introduction
        self.tables: dict[str, Table] = {}

    def table(
        self,
        name: str,
        shows: str,
        *,
        small: int | None,
        paper: int,
        priority: int = 2,
        published: dict[str, dict[str, float]] | None = None,
        finding: str = "",
        lists_over: str = "epoch",
        lists_from: int = 1,
        columns_over: str = "",
    ) -> Callable[[Callable[["Run"], None]], Callable[["Run"], None]]:
        """Decorates the function that measures a table.

        `small` and `paper` are the minutes that it takes at each scale. The other arguments are
        those of `Table`.
        """

        def register(compute: Callable[[Run], None]) -> Callable[[Run], None]:
            minutes: dict[str, int | None] = {"small": small, "paper": paper}
            self.tables[name] = Table(
                self.key, name, shows, compute, minutes, priority, published or {}, finding,
                lists_over, lists_from, columns_over,
            )  # fmt: skip
            return compute

        return register


def in_percent(
    columns: Sequence[str], rows: dict[str, tuple[float, ...]]
) -> dict[str, dict[str, float]]:
    """Converts rows of percentages to fractions by row and column."""
    return {
        row: {column: value / 100 for column, value in zip(columns, values, strict=True)}
        for row, values in rows.items()
    }


class TimeIsUpError(Exception):
    """Raised before a measurement or training that would start after the deadline."""


class Run:
    """Measures a table at one scale, except for the rows that are on record.

    Args:
        table: `Table`.
        scale: "small" or "paper".
        data_dir: folder of the data, or `None`.
        results: folder of the records.
        cache: folder of trained networks and of the checkpoints of unfinished trainings.
        deadline: time by `time.monotonic` after which no measurement or training starts. Defaults
            to `None`: no limit.
    """

    def __init__(
        self,
        table: Table,
        scale: str,
        data_dir: str | None,
        results: pathlib.Path,
        cache: pathlib.Path,
        deadline: float | None = None,
    ) -> None:
        self.table, self.scale, self.data_dir, self.deadline = table, scale, data_dir, deadline
        self.records = Records(results / f"{table.paper}.json")
        self.cache = cache / scale

    def __call__(self) -> None:
        """Measures the missing rows, and records that the table is complete."""
        self.table.compute(self)
        self.records.add(
            self.table.key(self.scale, COMPLETE), {"command": self.table.command(self.scale)}
        )

    @property
    def is_complete(self) -> bool:
        return self.table.is_complete(self.records.found, self.scale)

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The records of the table at this scale."""
        return self.table.rows(self.records.found, self.scale)

    def pick(self, small: Any, paper: Any) -> Any:
        """Returns the value for the scale of this run."""
        return small if self.scale == "small" else paper

    def picture(self) -> pathlib.Path:
        """Returns the path of the table's picture, which is in the folder of the records."""
        return self.records.path.parent / self.table.picture(self.scale)

    def data(self, name: str, num_train: int | None = None) -> tuple[Split, Split]:
        """Returns training and test images in [0, 1], with labels.

        `num_train` limits the number of training images.
        """
        (x, y), test = data.load(name, self.data_dir)
        return (x[:num_train], y[:num_train]), test

    def measure(
        self, row: str, compute: Callable[[], dict[str, Any]], seed: int = 0, **settings: Any
    ) -> dict[str, Any]:
        """Returns the values of a row, and computes and records them if necessary.

        `settings`, such as the numbers of images and epochs, are recorded with the values.
        """
        key = self.table.key(self.scale, f"{row}, seed {seed}")
        if key not in self.records.found:
            self._check_time()
            start = time.perf_counter()
            values = compute()
            record = {
                "table": self.table.name,
                "row": row,
                "scale": self.scale,
                "seed": seed,
                **settings,
                "values": values,
                "seconds": round(time.perf_counter() - start),
                "command": self.table.command(self.scale),
                **environment(),
            }
            self.records.add(key, record)
        values = self.records.found[key]["values"]
        shown = "  ".join(f"{k} {v:.4g}" for k, v in values.items() if isinstance(v, float))
        print(f"{self.table.name}, {row}, seed {seed}: {shown}", flush=True)
        return values

    def network(
        self,
        name: str,
        build: Callable[[], keras.Model],
        fit: Callable[[keras.Model, list[Any]], Any],
        seed: int = 0,
    ) -> keras.Model:
        """Returns a trained network, loaded from its file if it has been trained before.

        `fit(model, callbacks)` trains the network in place. The callbacks log and back up each
        epoch, so that an interrupted training can resume. `name` must be unique among the networks
        of all papers at this scale.
        """
        slug = _slug(f"{name}, seed {seed}")
        path = self.cache / f"{slug}.keras"
        if not path.exists():
            self._check_time()
            print(f"Training {name}, seed {seed}", flush=True)
            self.cache.mkdir(parents=True, exist_ok=True)
            keras.utils.set_random_seed(seed)
            model = build()
            log = keras.callbacks.CSVLogger(self.cache / f"{slug}.csv", append=True)
            folder = self.cache / slug
            if not (folder / "training_metadata.json").exists():
                # Keras writes this file last: the first backup was interrupted.
                shutil.rmtree(folder, ignore_errors=True)
            backup = keras.callbacks.BackupAndRestore(folder, double_checkpoint=True)
            try:
                fit(model, [log, backup])
            finally:
                if log.csv_file is not None:
                    log.csv_file.close()
            partial = path.with_name(f"{slug}.partial.keras")
            model.save(partial)
            partial.replace(path)
        return keras.saving.load_model(path)

    def array(self, name: str, compute: Callable[[], np.ndarray]) -> np.ndarray:
        """Returns an array, loaded from its file if it has been computed before."""
        path = self.cache / f"{name}.npy"
        if not path.exists():
            array = compute()
            self.cache.mkdir(parents=True, exist_ok=True)
            write_whole(path, lambda file: np.save(file, array))
        return np.load(path)

    def training_log(self, name: str, seed: int = 0) -> dict[str, list[float]]:
        """Returns the logged values of each epoch of a network's training, by name."""
        with open(self.cache / f"{_slug(f'{name}, seed {seed}')}.csv", newline="") as file:
            # A resumed training may repeat an epoch. The last row of each epoch counts.
            rows = list({row["epoch"]: row for row in csv.DictReader(file)}.values())
        # Keras writes "NA" where there are no validation data.
        names = [key for key, value in rows[0].items() if key != "epoch" and value != "NA"]
        return {name: [float(row[name]) for row in rows] for name in names}

    def _check_time(self) -> None:
        if self.deadline is not None and time.monotonic() > self.deadline:
            raise TimeIsUpError


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", name.lower())
