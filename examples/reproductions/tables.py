"""Papers with their tables and figures, and a run of one of them."""

import csv
import dataclasses
import pathlib
import re
import time
from collections.abc import Callable, Sequence
from typing import Any

import data
import keras
from data import Split
from records import Records, made_by

SCALES = ("small", "paper")
# The row that is recorded once all others are.
COMPLETE = "complete"


@dataclasses.dataclass(frozen=True)
class Table:
    """A table or a figure of a paper.

    Args:
        paper: key of the paper, the name of its module.
        name: the paper's own name for it: "Table 4".
        shows: what it shows, in a few words.
        compute: measures its rows in a `Run`.
        minutes: about how long it takes at each scale: "small" on 2 CPU cores, "paper" on one
            large GPU; `None` where there is no such scale.
        wanted: its place in a plan; 1 comes first.
        published: the paper's figures, by row and column.
        finding: where our figures differ from the paper's, and why. Defaults to `""`.
    """

    paper: str
    name: str
    shows: str
    compute: Callable[["Run"], None]
    minutes: dict[str, int | None]
    wanted: int
    published: dict[str, dict[str, float]]
    finding: str = ""

    def command(self, scale: str) -> str:
        """The command that measures it, or goes on with it."""
        prefix = "" if keras.backend.backend() == "tensorflow" else "KERAS_BACKEND=jax "
        command = f"{prefix}python examples/reproductions run {self.paper}"
        return f"{command} '{self.name}' --scale {scale}"

    def key(self, scale: str, row: str) -> str:
        """The name of a row in the records."""
        return f"{self.name}, {scale}, {row}"

    def is_complete(self, records: dict[str, Any], scale: str) -> bool:
        return self.key(scale, COMPLETE) in records

    def rows(self, records: dict[str, Any], scale: str) -> list[dict[str, Any]]:
        """The table's records at a scale, one for each row and seed."""
        mine = (self.name, scale)
        return [r for r in records.values() if (r.get("table"), r.get("scale")) == mine]

    def picture(self, scale: str) -> str:
        """The name of the file of its picture."""
        return _slug(f"{self.paper} {self.name} {scale}") + ".png"


class Paper:
    """A paper, with its tables in the order of their definitions.

    Args:
        key: the name of its module, and of the file of its records.
        title: authors and title.
        introduction: what its columns are. Defaults to `""`.
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
        wanted: int = 2,
        published: dict[str, dict[str, float]] | None = None,
        finding: str = "",
    ) -> Callable[[Callable[["Run"], None]], Callable[["Run"], None]]:
        """Decorates the function that measures a table; `small` and `paper` are minutes."""

        def register(compute: Callable[[Run], None]) -> Callable[[Run], None]:
            minutes: dict[str, int | None] = {"small": small, "paper": paper}
            self.tables[name] = Table(
                self.key, name, shows, compute, minutes, wanted, published or {}, finding
            )
            return compute

        return register


def in_percent(
    columns: Sequence[str], rows: dict[str, tuple[float, ...]]
) -> dict[str, dict[str, float]]:
    """A paper's figures, printed in percent, as shares by row and column."""
    return {
        row: {column: value / 100 for column, value in zip(columns, values, strict=True)}
        for row, values in rows.items()
    }


class TimeIsUpError(Exception):
    """Raised before a stage that would begin after the end of the time that was given."""


class Run:
    """Measures a table at one scale; what has been measured before is not repeated.

    Args:
        table: `Table`.
        scale: "small" or "paper".
        data_dir: folder of the data, or `None`.
        results: folder of the records.
        cache: folder of trained networks, and of those in training.
        deadline: time by `time.monotonic`, after which no stage begins. Defaults to `None`.
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
        """Measures what is missing, and records that the table is complete."""
        self.table.compute(self)
        self.records.add(
            self.table.key(self.scale, COMPLETE), {"command": self.table.command(self.scale)}
        )

    @property
    def is_complete(self) -> bool:
        return self.table.is_complete(self.records.found, self.scale)

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The table's records at this scale."""
        return self.table.rows(self.records.found, self.scale)

    def pick(self, small: Any, paper: Any) -> Any:
        """The setting of this scale."""
        return small if self.scale == "small" else paper

    def picture(self) -> pathlib.Path:
        """The file of the table's picture, beside the records."""
        return self.records.path.parent / self.table.picture(self.scale)

    def data(self, name: str, num_train: int | None = None) -> tuple[Split, Split]:
        """Training and test images in [0, 1], with labels; the first `num_train` of the former."""
        (x, y), test = data.load(name, self.data_dir)
        return (x[:num_train], y[:num_train]), test

    def measure(
        self, row: str, compute: Callable[[], dict[str, Any]], seed: int = 0, **settings: Any
    ) -> dict[str, Any]:
        """Returns the values of a row, computed by `compute` if they are not on record.

        `settings`, such as the numbers of images and epochs, are recorded beside them.
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
                **made_by(),
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
        """Returns a trained network, from its file if there is one.

        `fit(model, callbacks)` trains it in place. The callbacks save each epoch and its log, so
        that an interrupted training goes on. `name` tells it from all others of the paper and
        scale.
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
            backup = keras.callbacks.BackupAndRestore(self.cache / slug)
            try:
                fit(model, [log, backup])
            finally:
                if log.csv_file is not None:
                    log.csv_file.close()
            partial = path.with_name(f"{slug}.partial.keras")
            model.save(partial)
            partial.replace(path)
        return keras.saving.load_model(path)

    def training_log(self, name: str, seed: int = 0) -> dict[str, list[float]]:
        """What each epoch of a network's training has logged."""
        with open(self.cache / f"{_slug(f'{name}, seed {seed}')}.csv", newline="") as file:
            rows = list(csv.DictReader(file))
        # Keras writes "NA" where there are no validation data.
        names = [key for key, value in rows[0].items() if key != "epoch" and value != "NA"]
        return {name: [float(row[name]) for row in rows] for name in names}

    def _check_time(self) -> None:
        if self.deadline is not None and time.monotonic() > self.deadline:
            raise TimeIsUpError


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", name.lower())
