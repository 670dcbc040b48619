"""Attacking images batch by batch, shown and saved on the way."""

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
    """Each batch's indices, and what attacking it has found.

    Args:
        batches: what `attack_in_batches` yields.
        costs: what each round of a batch costs.
        file: string, what the names of the files begin with that the arrays are saved in.
        keep: function of the arrays found on a batch that returns those to save, `success` among
            them.
        progress: where they are saved.
        verbose: int, as of `kr.evaluate`.
        shard: `(i, n)`: of the batches, the i-th and each n-th after it. Defaults to all of them.
    """
    numbered = list(enumerate(batches))[shard[0] - 1 :: shard[1]]
    meter = Meter(costs, len(numbered), verbose)
    num_attacked = num_robust = sum(len(batch) for _, (batch, _) in numbered)
    for number, (batch, attack_batch) in numbered:

        def attacked(
            journal: Journal, attack_batch: Callable[..., Arrays] = attack_batch
        ) -> Arrays:
            return keep(attack_batch(journal))

        meter.begin_batch(len(batch))
        found = progress.attacked(f"{file}-{number:05}", attacked, meter)
        meter.end_batch()
        num_robust -= int(found["success"].sum())
        yield batch, found
    meter.close(num_robust, num_attacked)
