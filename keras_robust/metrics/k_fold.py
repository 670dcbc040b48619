"""Cross-validation with confidence intervals."""

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
from keras_robust.model.arrays import as_arrays
from keras_robust.model.checks import check_images, check_labels, sparse
from keras_robust.model.classifier import Classifier
from keras_robust.text_table import text_table
from keras_robust.types import Images, Labels, Model
from keras_robust.whole_file import write_whole


@dataclasses.dataclass(frozen=True)
class KFold:
    """The results of a cross-validation, made by `kr.evaluation.k_fold`.

    Args:
        folds: list of mappings of names to figures, one mapping per fold.
    """

    folds: list[dict[str, float]]

    def values(self, name: str) -> np.ndarray:
        """Returns a figure's value in each fold."""
        if name not in self.folds[0]:
            raise ValueError(
                f"Argument `name` must be one of {list(self.folds[0])}. Received: name={name!r}"
            )
        return np.array([fold[name] for fold in self.folds])

    def mean(self, name: str) -> float:
        return float(self.values(name).mean())

    def interval(self, name: str) -> tuple[float, float]:
        """Returns the 95% confidence interval of the mean: `mean -+ t s / sqrt(k)`.

        `s` is the standard deviation over the k folds, and `t` the 97.5% quantile of Student's
        t-distribution with k - 1 degrees of freedom.
        """
        import scipy.stats

        values = self.values(name)
        quantile = scipy.stats.t.ppf(0.975, len(values) - 1)
        half = float(quantile * values.std(ddof=1) / math.sqrt(len(values)))
        return self.mean(name) - half, self.mean(name) + half

    def to_dict(self) -> dict[str, Any]:
        """Returns all figures in a form that can be written as JSON."""
        return {
            "num_folds": len(self.folds),
            "figures": {
                name: {"mean": self.mean(name), "confidence_95": list(self.interval(name))}
                for name in self.folds[0]
            },
            "folds": self.folds,
        }

    def __str__(self) -> str:
        rows = []
        for name in self.folds[0]:
            low, high = self.interval(name)
            rows.append((name, f"{self.mean(name):.4g}", f"{low:.4g} to {high:.4g}"))
        return f"{text_table(('', 'mean', '95% interval'), rows)}\n{len(self.folds)} folds"


def k_fold(
    fit: Callable[[np.ndarray, np.ndarray], Any],
    x: Images,
    y: Labels = None,
    *,
    measure: Callable[[Any, np.ndarray, np.ndarray], Mapping[str, float]] | None = None,
    num_folds: int = 10,
    output: str | os.PathLike[str] | None = None,
    seed: int = 0,
    steps: int | None = None,
    verbose: int = 1,
) -> KFold:
    """Runs a stratified cross-validation and computes 95% confidence intervals over the folds.

    The examples are divided into `num_folds` parts with the same share of each class. For each
    part, a model is fitted on all other parts and evaluated on this part. Before each fold, the
    random numbers of Python, NumPy and Keras are seeded with `seed` plus the fold's number. A
    resumed run therefore gives the same result as an uninterrupted run.

    Args:
        fit: function `(x_train, y_train) -> model` that creates and trains a new model. Its result
            is only passed to `measure`, so it may also be several models.
        x: images, shape `(num_examples, ...)`, or a data set of (image, label) pairs, as for
            `kr.evaluate`.
        y: integer or one-hot labels. Omit it if `x` is a data set. Defaults to `None`.
        measure: function `(model, x_test, y_test) -> mapping` of names to finite numbers, with the
            same names in each fold. Defaults to `None`: the accuracy, as `"accuracy"`.
        num_folds: int, at least 2. Defaults to `10`.
        output: path of a folder in which the figures of each fold are saved as soon as they are
            known. It is created if it does not exist. Folds that are already in the folder are not
            computed again. It is an error if they were made with different data, `num_folds` or
            `seed`. Changes of `fit` and `measure` are not detected: use a new folder for them.
            Defaults to `None`: nothing is saved.
        seed: int. Random seed of the division and of the folds. Defaults to `0`.
        steps: int. Number of batches to read from a data set. Defaults to `None`: all of them.
        verbose: int. 1 shows a progress bar, 0 shows nothing. Defaults to `1`.

    Returns:
        `KFold`: `mean(name)`, `interval(name)` and the `folds`. As a string, it is a table.

    Raises:
        ImportError: if scikit-learn is not installed.
        ValueError: if an argument is not as described above, or if a class has fewer examples than
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

    The intervals treat the folds as independent. Every two folds share most of their training
    images, so the intervals are somewhat too narrow.

    Reference:

    - Schwartz and Ditzler, 2020, "Bolstering Adversarial Robustness with Latent Disparity
      Regularization", section IV: "stratified ten-fold cross-validation" with "95% confidence
      intervals, estimated over ten folds". The paper does not say how they are estimated. Student's
      t-distribution is the standard choice for ten values with an unknown variance.
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
            "Every class must have at least `num_folds` examples. Received: "
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


def _accuracy(model: Model, x: np.ndarray, y: np.ndarray) -> dict[str, float]:
    classes = Classifier.of(model).classes(x, min(128, len(x)))
    return {"accuracy": float((classes == sparse(y)).mean())}


def _checked(figures: Any, folds: list[dict[str, float]]) -> dict[str, float]:
    """Validates the result of `measure`: finite numbers, with the same names in every fold."""
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
    """Creates the folder, or checks that its contents were made with the same settings."""
    path = folder / "settings.json"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        _write(path, settings)
    found = json.loads(path.read_text())
    if found != settings:
        raise ValueError(
            "The folder in argument `output` holds the folds of another cross-validation. Pass a "
            f"new folder. Received: output={str(folder)!r}, made with {found}, not {settings}"
        )


def _write(path: pathlib.Path, content: Any) -> None:
    """Writes JSON atomically."""
    text = json.dumps(content, indent=2) + "\n"
    write_whole(path, lambda file: file.write(text.encode()))
