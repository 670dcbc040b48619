"""Merges the reports of an evaluation that was run in shares."""

import os
import pathlib
from collections.abc import Sequence

import numpy as np

from keras_robust.attacks.journal import Arrays
from keras_robust.evaluation.progress import Progress, differing, load_arrays, load_fingerprint
from keras_robust.evaluation.recording import file_name, record
from keras_robust.evaluation.shards import SHARD
from keras_robust.report.report import Report
from keras_robust.report.row import CLEAN, WORST_CASE, Row


def merge(
    directories: Sequence[str | os.PathLike[str]], output: str | os.PathLike[str] | None = None
) -> Report:
    """Merges the shares made by `kr.evaluate(..., shard=...)` into one report.

    The result is the report of a single process without checks, except for its date. To add the
    checks, call `kr.evaluate` with the same arguments and `output`, with `resume=True` and without
    `shard`. This computes only the checks.

    Args:
        directories: the `output` folders of all shares, in any order.
        output: path of a folder to save the report and the results of all shares in. Defaults to
            `None`: nothing is saved.

    Returns:
        `kr.evaluation.Report`.

    Raises:
        ValueError: if a folder holds no finished share, if a share is missing or occurs twice, or
            if the shares belong to different evaluations. All shares must have the same model,
            images, labels, attacks and settings, and the same predictions on the clean images.

    Example:

    >>> import keras, numpy as np, tempfile, keras_robust as kr
    >>> model = keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(10)])
    >>> x, y = np.random.rand(32, 8, 8, 1).astype("float32"), np.arange(32) % 10
    >>> folders = [tempfile.mkdtemp() for _ in range(2)]
    >>> for number, folder in enumerate(folders, start=1):
    ...     part = kr.evaluate(model, x, y, kr.attacks.FGSM(0.1), batch_size=1, output=folder,
    ...                        shard=(number, 2), verbose=0)
    >>> kr.evaluation.merge(folders).num_examples
    32
    """
    folders = [pathlib.Path(directory) for directory in directories]
    facts = _facts(folders)
    reports = [Report.load(folder) for folder in folders]
    for folder, report in zip(folders, reports, strict=True):
        if not report.complete:
            raise ValueError(f"The share in {str(folder)!r} is not finished: resume it first.")
    saved = [_saved_arrays(folder) for folder in folders]
    clean = saved[0]["clean"]["correct"]
    if any((arrays["clean"]["correct"] != clean).any() for arrays in saved):
        raise ValueError(
            "The shares cannot be merged: they differ in which clean images the model classifies "
            "correctly. Run all shares on the same kind of device."
        )
    first = reports[0]
    merged = Report(
        len(clean),
        first.batch_size,
        first.seed,
        first.worst_case_only,
        notes=_joined([report.notes for report in reports]),
        environment=_joined([report.environment for report in reports]),
        labels=saved[0]["clean"].get("labels"),
        class_names=first.class_names,
    )
    merged.add(Row(CLEAN, clean))
    found = {name: arrays for share in saved for name, arrays in share.items()}
    attacked = [row for row in first.rows if row.attack is not None]
    limited = [row.name for row in attacked if row.radii] or [row.name for row in attacked]
    worst = clean
    for number, part in enumerate(attacked):
        none_yet = np.zeros(len(clean), bool)
        row = Row(part.name, clean.copy(), part.attack, dict(part.radii), attacked=none_yet)
        names = sorted(name for name in found if name.startswith(f"{file_name(number)}-"))
        merged.add(row, record(row, (found[name] for name in names)))
        if row.name in limited:
            worst = worst & row.correct
    merged.add(Row(WORST_CASE, worst, radii=dict(first.row(WORST_CASE).radii)))
    if output is not None:
        progress = Progress(pathlib.Path(output) / "progress", facts)
        for name in found:
            progress.arrays(name, lambda name=name: found[name])  # type: ignore[misc]
        merged.save(output)
    return merged


def _facts(folders: list[pathlib.Path]) -> dict[str, str]:
    """Checks that the folders hold every share of one evaluation, and returns its fingerprint."""
    all_facts, shards = [], []
    for folder in folders:
        facts = load_fingerprint(folder / "progress") or {}
        all_facts.append(facts)
        if SHARD not in facts:
            raise ValueError(
                "Argument `directories` must be folders of shares, as written by "
                f"`kr.evaluate(..., shard=(i, n))`. Received: {str(folder)!r}"
            )
        shards.append(facts.pop(SHARD))
    first = all_facts[0] if all_facts else {}
    for folder, facts in zip(folders, all_facts, strict=True):
        different = differing(first, facts)
        if different:
            raise ValueError(
                f"The shares cannot be merged: {str(folder)!r} was evaluated with other "
                f"{', '.join(different)} than {str(folders[0])!r}."
            )
    count = len(shards)
    if not count or sorted(shards) != sorted(repr((n, count)) for n in range(1, count + 1)):
        raise ValueError(
            "Argument `directories` must hold each share of one evaluation once. "
            f"Received: shares {', '.join(sorted(shards)) or 'none'}"
        )
    return first


def _saved_arrays(folder: pathlib.Path) -> dict[str, Arrays]:
    """Loads all saved arrays of a share, by file name."""
    return {path.stem: load_arrays(path) for path in sorted((folder / "progress").glob("*.npz"))}


def _joined(mappings: list[dict[str, str]]) -> dict[str, str]:
    """Merges mappings: joins the values of a name with "and" where they differ."""
    return {
        name: " and ".join(dict.fromkeys(mapping.get(name, "none") for mapping in mappings))
        for name in mappings[0]
    }
