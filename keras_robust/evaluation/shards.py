"""An evaluation in shares, each by a process of its own."""

import dataclasses
import os
from typing import Any

import numpy as np

from keras_robust.report.report import Report
from keras_robust.report.row import CLEAN

# What the share is called among the facts that an evaluation depends on.
SHARD = "shard"


def check_shard(shard: Any, output: str | os.PathLike[str] | None, **needing_all: Any) -> None:
    """Raises a `ValueError` for a share that there cannot be, with arguments that need all."""
    is_pair = isinstance(shard, list | tuple) and len(shard) == 2
    if not is_pair or not all(isinstance(n, int) for n in shard) or not 1 <= shard[0] <= shard[1]:
        raise ValueError(
            "Argument `shard` must be a pair `(i, n)`, the i-th of n shares, with i from 1 to n. "
            f"Received: shard={shard!r}"
        )
    if output is None:
        raise ValueError(
            "Argument `shard` needs an `output`, a folder for each share, of which "
            f"`keras_robust.evaluation.merge` makes one report. Received: shard={shard!r}, "
            "output=None"
        )
    for name, value in needing_all.items():
        if value:
            raise ValueError(
                f"Argument `{name}` needs what all shares have found: leave it out, or `shard`. "
                f"Received: {name}={value!r}, shard={shard!r}"
            )


def share_of(report: Report, shard: tuple[int, int]) -> Report:
    """The report of the examples of one share.

    They are those that were attacked in it, and of those that are misclassified to begin with the
    i-th and each n-th after it, so that each example is in one share.
    """
    number, count = shard
    examples = [np.flatnonzero(~report.row(CLEAN).correct)[number - 1 :: count]]
    examples += [np.flatnonzero(row.attacked) for row in report.rows if row.attacked is not None]
    share = np.unique(np.concatenate(examples))
    if not len(share):
        raise ValueError(
            f"There are fewer than {number} batches of examples, and nothing is left for this "
            f"share: make fewer. Received: shard={shard}, batch_size={report.batch_size}"
        )
    assert report.labels is not None
    return dataclasses.replace(
        report,
        num_examples=len(share),
        rows=[row.of(share) for row in report.rows],
        labels=report.labels[share],
    )
