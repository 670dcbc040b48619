"""Evaluates shares of an evaluation in separate processes."""

import dataclasses
import os
from typing import Any

import numpy as np

from keras_robust.report.report import Report
from keras_robust.report.row import CLEAN

# The name of the share in the fingerprint of an evaluation.
SHARD = "shard"


def check_shard(shard: Any, output: str | os.PathLike[str] | None, **needing_all: Any) -> None:
    """Validates `shard` and refuses it together with arguments that need all shares."""
    is_pair = isinstance(shard, list | tuple) and len(shard) == 2
    if not is_pair or not all(isinstance(n, int) for n in shard) or not 1 <= shard[0] <= shard[1]:
        raise ValueError(
            "Argument `shard` must be a pair `(i, n)` for the i-th of n shares, with i from 1 to "
            f"n. Received: shard={shard!r}"
        )
    if output is None:
        raise ValueError(
            "Argument `shard` needs an `output`: a separate folder for each share, from which "
            f"`keras_robust.evaluation.merge` makes one report. Received: shard={shard!r}, "
            "output=None"
        )
    for name, value in needing_all.items():
        if value:
            raise ValueError(
                f"Argument `{name}` needs the results of all shares and cannot be combined with "
                f"`shard`. Received: {name}={value!r}, shard={shard!r}"
            )


def share_of(report: Report, shard: tuple[int, int]) -> Report:
    """Returns the report restricted to the examples of one share.

    A share consists of the examples that it attacked, and of the i-th and every n-th following
    example among those that are misclassified without an attack. Every example is thus in exactly
    one share.
    """
    number, count = shard
    examples = [np.flatnonzero(~report.row(CLEAN).correct)[number - 1 :: count]]
    examples += [np.flatnonzero(row.attacked) for row in report.rows if row.attacked is not None]
    share = np.unique(np.concatenate(examples))
    if not len(share):
        raise ValueError(
            f"There are fewer than {number} batches of examples, so this share is empty: use fewer "
            f"shares. Received: shard={shard}, batch_size={report.batch_size}"
        )
    assert report.labels is not None
    return dataclasses.replace(
        report,
        num_examples=len(share),
        rows=[row.of(share) for row in report.rows],
        labels=report.labels[share],
    )
