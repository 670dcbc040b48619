"""The accuracies of one class of a report."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from keras_robust.report.row import CLEAN, WORST_CASE, Row, wilson_interval

COLUMNS = ("class", "examples", CLEAN, WORST_CASE, "95% interval")


@dataclasses.dataclass
class ClassAccuracy:
    """How many examples of one class are classified correctly, clean and under attacks.

    Args:
        index: int, the class.
        name: string, what the report calls it.
        num_examples: int, how many examples there are of it.
        accuracy: mapping of the names of the report's rows to accuracies from 0 to 1; to `None`
            where there are no examples.
    """

    index: int
    name: str
    num_examples: int
    accuracy: dict[str, float | None]

    @property
    def worst_case(self) -> float | None:
        """The accuracy in the worst case; `None` without examples, or before it is known."""
        return self.accuracy.get(WORST_CASE)

    @property
    def cells(self) -> tuple[str, ...]:
        """What a table shows of the class beside its name, below `COLUMNS`."""
        if not self.num_examples:
            return ("0", "no examples", "", "")
        shares = (self.accuracy.get(CLEAN), self.worst_case)
        interval = "{:.1%} to {:.1%}".format(*self.interval) if self.interval else ""
        return (
            f"{self.num_examples}",
            *("" if share is None else f"{share:.1%}" for share in shares),
            interval,
        )

    @property
    def interval(self) -> tuple[float, float] | None:
        """95% confidence interval of the accuracy in the worst case; `None` where that is."""
        if self.worst_case is None:
            return None
        return wilson_interval(round(self.worst_case * self.num_examples), self.num_examples)


def by_class(
    labels: np.ndarray, class_names: Sequence[str], rows: Sequence[Row]
) -> list[ClassAccuracy]:
    """The accuracies of each class.

    Args:
        labels: int array, shape `(num_examples,)`, the true classes.
        class_names: sequence of strings, the names of all classes.
        rows: the report's rows.
    """
    count = len(class_names)
    labels = labels.astype("int64")
    sizes = np.bincount(labels, minlength=count)
    correct = {row.name: np.bincount(labels[row.correct], minlength=count) for row in rows}
    classes = []
    for index, name in enumerate(class_names):
        size = int(sizes[index])
        found = {row: int(n[index]) / size if size else None for row, n in correct.items()}
        classes.append(ClassAccuracy(index, name, size, found))
    return classes
