"""Attacks images batch by batch, showing and saving the progress."""

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from keras_robust.attacks.journal import Arrays, Journal
from keras_robust.attacks.meter import Cost, Meter
from keras_robust.evaluation.progress import Progress


def attacked_batches(
    batches: Iterable[tuple[np.ndarray, Callable[..., Arrays]]],
    costs: Sequence[Cost],
    *,
    file: str,
    keep: Callable[[Arrays], Arrays],
    progress: Progress,
    verbose: int,
    shard: tuple[int, int] = (1, 1),
) -> Iterator[tuple[np.ndarray, Arrays]]:
    """Yields the indices of each batch and the results of attacking it.

    Args:
        batches: the pairs that `attack_in_batches` yields.
        costs: the cost of each round of a batch.
        file: string. Prefix of the names of the files in which the arrays are saved.
        keep: function that takes the arrays found on a batch and returns the arrays to save, which
            must include `success`.
        progress: the store of the saved arrays.
        verbose: int, as for `kr.evaluate`.
        shard: pair of ints `(i, n)`: selects the i-th batch and every n-th batch after it.
            Defaults to all batches.
    """
    numbered = list(enumerate(batches))[shard[0] - 1 :: shard[1]]
    meter = Meter(costs, len(numbered), verbose)
    num_attacked = num_robust = sum(len(batch) for _, (batch, _) in numbered)
    for number, (batch, attack_batch) in numbered:

        def run(journal: Journal, attack_batch: Callable[..., Arrays] = attack_batch) -> Arrays:
            return keep(attack_batch(journal))

        meter.begin_batch(len(batch))
        found = progress.attacked(f"{file}-{number:05}", run, meter)
        meter.end_batch()
        num_robust -= int(found["success"].sum())
        yield batch, found
    meter.close(num_robust, num_attacked)
