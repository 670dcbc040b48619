"""The accuracies of one class in a report."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from keras_robust.report.row import CLEAN, WORST_CASE, Row, wilson_interval

COLUMNS = ("class", "examples", CLEAN, WORST_CASE, "95% interval")


@dataclasses.dataclass
class ClassAccuracy:
    """The clean accuracy and the accuracies under attack of one class.

    Args:
        index: int, the class.
        name: string, the name of the class in the report.
        num_examples: int, the number of examples of the class.
        accuracy: mapping of the names of the report's rows to accuracies from 0 to 1, or to `None`
            if there are no examples.
    """

    index: int
    name: str
    num_examples: int
    accuracy: dict[str, float | None]

    @property
    def worst_case(self) -> float | None:
        """The worst-case accuracy; `None` without examples, or before it is known."""
        return self.accuracy.get(WORST_CASE)

    @property
    def cells(self) -> tuple[str, ...]:
        """The cells of the class in a table with the header `COLUMNS`, after its name."""
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
        """95% confidence interval of the worst-case accuracy; `None` if that is `None`."""
        if self.worst_case is None:
            return None
        return wilson_interval(round(self.worst_case * self.num_examples), self.num_examples)


def by_class(
    labels: np.ndarray, class_names: Sequence[str], rows: Sequence[Row]
) -> list[ClassAccuracy]:
    """Computes the accuracies of each class.

    Args:
        labels: int array, shape `(num_examples,)`, the true classes.
        class_names: sequence of strings, the names of all classes.
        rows: the report's rows.

    Returns:
        List of `ClassAccuracy`, one for each class.
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
