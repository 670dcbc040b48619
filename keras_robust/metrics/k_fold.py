"""Cross-validation."""

import dataclasses
import hashlib
import json
import math
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np

from keras_robust import validation
from keras_robust.metrics.analysis import require_scikit_learn
from keras_robust.model.arrays import as_arrays, check_images, check_labels, sparse
from keras_robust.model.classifier import Classifier


@dataclasses.dataclass(frozen=True)
class KFold:
    """What a cross-validation has measured; made by `kr.evaluation.k_fold`.

    Args:
        folds: list of mappings of names to figures, one for each fold.
    """

    folds: list[dict[str, float]]

    def values(self, name: str) -> np.ndarray:
        """One figure in each fold."""
        if name not in self.folds[0]:
            raise ValueError(
                f"Argument `name` must be one of {list(self.folds[0])}. Received: name={name!r}"
            )
        return np.array([fold[name] for fold in self.folds])

    def mean(self, name: str) -> float:
        return float(self.values(name).mean())

    def interval(self, name: str) -> tuple[float, float]:
        """95% confidence interval of the mean: `mean -+ t s / sqrt(k)`.

        `s` is the standard deviation over the k folds, `t` the 97.5% quantile of Student's
        distribution with k - 1 degrees of freedom.
        """
        import scipy.stats

        values = self.values(name)
        quantile = scipy.stats.t.ppf(0.975, len(values) - 1)
        half = float(quantile * values.std(ddof=1) / math.sqrt(len(values)))
        return self.mean(name) - half, self.mean(name) + half

    def to_dict(self) -> dict[str, Any]:
        """All figures, ready for JSON."""
        return {
            "num_folds": len(self.folds),
            "figures": {
                name: {"mean": self.mean(name), "confidence_95": list(self.interval(name))}
                for name in self.folds[0]
            },
            "folds": self.folds,
        }

    def __str__(self) -> str:
        width = max(map(len, self.folds[0]))
        lines = [f"{'':{width}}     mean  95% interval"]
        for name in self.folds[0]:
            low, high = self.interval(name)
            lines.append(f"{name:{width}}  {self.mean(name):7.4g}  {low:.4g} to {high:.4g}")
        return "\n".join([*lines, f"{len(self.folds)} folds"])


def k_fold(
    fit: Callable[[np.ndarray, np.ndarray], Any],
    x: Any,
    y: Any = None,
    *,
    measure: Callable[[Any, np.ndarray, np.ndarray], Mapping[str, float]] | None = None,
    num_folds: int = 10,
    output: str | os.PathLike[str] | None = None,
    seed: int = 0,
    steps: int | None = None,
    verbose: int = 1,
) -> KFold:
    """Stratified cross-validation, with 95% confidence intervals over the folds.

    The examples are divided into `num_folds` parts in which each class has its share. In turn,
    each part is what a model is measured on that has been fitted on all the others. Python's,
    NumPy's and Keras's random numbers are seeded with `seed` plus the fold's number before each
    fold, so that a run continued later gives what an uninterrupted one would have.

    The intervals take the folds for independent, which they are not quite: each two share most
    of their training images. They are somewhat too narrow for that.

    Args:
        fit: `(x_train, y_train) -> model`, which makes a new model and trains it. What it returns
            is only passed on to `measure`: it may be several models.
        x: images, shape `(num_examples, ...)`, or a data set of pairs of images and labels,
            as for `kr.evaluate`.
        y: integer or one-hot labels. Defaults to `None`, for a data set.
        measure: `(model, x_test, y_test) -> mapping` of names to finite numbers, the same names
            in each fold. Defaults to `None`: the accuracy, as `"accuracy"`.
        num_folds: int, at least 2. Defaults to `10`.
        output: folder, made if need be, where each fold's figures are saved as they come. A fold
            that is found there is not computed again; if the data, `num_folds` or `seed` are
            other ones, that is an error. Changes of `fit` and `measure` are not noticed: they
            need a new folder. Defaults to `None`: nothing is saved.
        seed: int. Seed of the division and of the folds. Defaults to `0`.
        steps: int. How many batches of a data set to read. Defaults to `None`: all of them.
        verbose: int. 1 shows a progress bar, 0 nothing. Defaults to `1`.

    Returns:
        `KFold`: `mean(name)`, `interval(name)` and the `folds`; as text, a table.

    Raises:
        ImportError: if scikit-learn is not installed.
        ValueError: if an argument is not as described above, or a class has fewer examples than
            there are folds.

    Example:

    >>> import keras, numpy as np, keras_robust as kr
    >>> x, y = np.random.rand(40, 8, 8, 1), np.arange(40) % 2
    >>> def fit(x, y):
    ...     model = keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(2)])
    ...     model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    ...     model.fit(x, y, verbose=0)
    ...     return model
    >>> result = kr.evaluation.k_fold(fit, x, y, num_folds=2, verbose=0)
    >>> len(result.folds)
    2

    Reference:

    - Schwartz & Ditzler, Bolstering Adversarial Robustness with Latent Disparity
      Regularization, section IV: "stratified ten-fold cross-validation" with "95% confidence
      intervals, estimated over ten folds". How they are estimated is not said; Student's
      distribution is what ten values with an unknown variance call for.
    """
    require_scikit_learn()
    from sklearn.model_selection import StratifiedKFold

    if validation.check_count("num_folds", num_folds) < 2:
        raise ValueError(f"Argument `num_folds` must be at least 2. Received: {num_folds=}")
    x, y = as_arrays(x, y, steps)
    check_images(x)
    labels = sparse(y)
    check_labels(labels, len(x), max(int(labels.max(initial=0)) + 1, 2))
    classes, counts = np.unique(labels, return_counts=True)
    if counts.min() < num_folds:
        raise ValueError(
            "Argument `num_folds` must be no more than the examples of each class. Received: "
            f"num_folds={num_folds}, {counts.min()} examples of class {classes[counts.argmin()]}"
        )
    folder = None if output is None else pathlib.Path(output)
    if folder is not None:
        _check_folder(folder, {"num_folds": num_folds, "seed": seed, "data": _digest(x, y)})

    folds: list[dict[str, float]] = []
    bar = keras.utils.Progbar(num_folds, verbose=verbose)
    splits = StratifiedKFold(num_folds, shuffle=True, random_state=seed).split(labels, labels)
    for number, (train, test) in enumerate(splits):
        path = None if folder is None else folder / f"fold_{number}.json"
        if path is not None and path.exists():
            folds.append(json.loads(path.read_text()))
        else:
            keras.utils.set_random_seed(seed + number)
            model = fit(x[train], y[train])
            figures = (measure or _accuracy)(model, x[test], y[test])
            folds.append(_checked(figures, folds))
            if path is not None:
                _write(path, folds[-1])
        bar.add(1)
    result = KFold(folds)
    if folder is not None:
        _write(folder / "k_fold.json", result.to_dict())
    return result


def _accuracy(model: Any, x: np.ndarray, y: np.ndarray) -> dict[str, float]:
    classes = Classifier.of(model).classes(x, min(128, len(x)))
    return {"accuracy": float((classes == sparse(y)).mean())}


def _checked(figures: Any, folds: list[dict[str, float]]) -> dict[str, float]:
    """What `measure` returned: finite numbers under the same names as in the folds before."""
    valid = isinstance(figures, Mapping) and len(figures) > 0
    if not valid or (folds and set(figures) != set(folds[0])):
        raise ValueError(
            "Argument `measure` must return a mapping of names to numbers, the same names in each "
            f"fold. Received: {figures!r}"
        )
    return {
        str(name): validation.check_number(str(name), value, minimum=-math.inf)
        for name, value in figures.items()
    }


def _digest(x: np.ndarray, y: np.ndarray) -> str:
    digest = hashlib.sha256()
    for array in (x, y):
        digest.update(str((array.shape, array.dtype)).encode())
        digest.update(np.ascontiguousarray(array).view("uint8").data)
    return digest.hexdigest()


def _check_folder(folder: pathlib.Path, settings: dict[str, Any]) -> None:
    """Makes the folder, or sees to it that what it holds was made with the same settings."""
    path = folder / "settings.json"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        _write(path, settings)
    found = json.loads(path.read_text())
    if found != settings:
        raise ValueError(
            "The folder in argument `output` holds the folds of another cross-validation. Pass a "
            f"new one. Received: output={str(folder)!r}, made with {found}, not {settings}"
        )


def _write(path: pathlib.Path, content: Any) -> None:
    """Writes JSON so that the file is whole or not there."""
    temporary = path.with_suffix(".json.part")
    temporary.write_text(json.dumps(content, indent=2) + "\n")
    temporary.replace(path)
