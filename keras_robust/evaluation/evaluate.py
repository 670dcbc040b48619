"""The robustness report of a classifier."""

import functools
import os
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from keras_robust import validation
from keras_robust.attacks import Attack
from keras_robust.evaluation import plots
from keras_robust.evaluation.accuracy import attack_standing, check_attack
from keras_robust.evaluation.arrays import as_arrays, predicted_classes, sparse
from keras_robust.evaluation.report import CLEAN, WORST_CASE, Report, Row

_NUM_SAMPLES = 8


def evaluate(
    model: Any,
    x: Any,
    y: Any = None,
    attacks: Mapping[str, Attack] | None = None,
    batch_size: int = 128,
    output: str | os.PathLike[str] | None = None,
    seed: int = 0,
    worst_case_only: bool = False,
    verbose: int = 1,
) -> Report:
    """Measures a classifier's accuracy on clean images and under attacks.

    An example counts for an attack if it is classified correctly both before and after it; in
    the worst case, if it is after every attack. Examples that are misclassified to begin with
    are not attacked at all.

    Args:
        model: Keras model, `kr.RobustModel`, or a callable `x -> logits`. It is run in inference
            mode.
        x: images, shape `(num_examples, ...)`, or a `tf.data.Dataset` of pairs of images and
            labels, batched or not. All of it is held in memory.
        y: integer labels, shape `(num_examples,)`, or one-hot labels, shape
            `(num_examples, num_classes)`. Defaults to `None`, for a data set.
        attacks: mapping of names to `kr.attacks.Attack`s, untargeted, at least one. Defaults to
            `None`, which is refused.
        batch_size: int. Defaults to `128`.
        output: folder to save the report in, made if need be. What is finished is saved there
            after each attack, so that an interrupted evaluation loses one attack at most.
            Defaults to `None`: nothing is saved.
        seed: int. Seed of the attacks' random numbers. Defaults to `0`.
        worst_case_only: bool. Whether to leave out, in each attack, the examples that an earlier
            one has fooled. The worst case is the same and costs less; the row of each attack
            then is the accuracy after it and all before it. Defaults to `False`.
        verbose: int. 1 shows a progress bar for each attack, 2 a line, 0 nothing. Defaults to
            `1`.

    Returns:
        `kr.evaluation.Report`: a row for the clean images, one for each attack, and one for the
        worst case over all attacks per example.

    Raises:
        ValueError: before any work, if `attacks` is empty or holds something else than untargeted
            attacks, or if one of them cannot work on `x`, `y` and `model`.

    Example:

    >>> import keras, numpy as np, keras_robust as kr
    >>> model = keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(10)])
    >>> x = np.random.rand(32, 8, 8, 1).astype("float32")
    >>> y = np.random.randint(0, 10, 32)
    >>> report = kr.evaluate(model, x, y, {"FGSM": kr.attacks.FGSM(epsilon=1.0)}, verbose=0)
    >>> report.to_dict()["rows"][-1]["name"], report.accuracy("worst case")
    ('worst case', 0.0)
    """
    attacks = _check_attacks(attacks)
    batch_size = validation.check_count("batch_size", batch_size)
    x, y = as_arrays(x, y)
    for attack in attacks.values():
        attack.check(model, x, y)
    if output is not None:
        plots.require_matplotlib()

    batch_size = min(batch_size, len(x))
    labels = sparse(y)
    classes = predicted_classes(model, x, batch_size)
    clean = classes == labels
    # Examples that will be attacked are shown first.
    shown = np.argsort(~clean, kind="stable")[:_NUM_SAMPLES]
    report = Report(
        num_examples=len(x),
        batch_size=batch_size,
        seed=seed,
        worst_case_only=worst_case_only,
        sample_images=x[shown],
        sample_labels=labels[shown],
    )
    report.add(Row(CLEAN, clean))

    worst = clean
    for name, attack in attacks.items():
        standing = worst if worst_case_only else clean
        num_batches = -(-int(standing.sum()) // batch_size)
        if verbose:
            print(f"{name} on {standing.sum()} of {len(x)} examples")
        bar = keras.utils.Progbar(num_batches or None, verbose=verbose)
        x_adv, perturbed_classes = attack_standing(
            model,
            x,
            labels,
            classes,
            attack,
            standing,
            batch_size,
            seed,
            progress=functools.partial(_advance, bar),
        )
        correct = standing & (perturbed_classes == labels)
        row = Row(name, correct, repr(attack), float(np.abs(x_adv - x).max()))
        report.add(row, x_adv[shown], perturbed_classes[shown])
        worst = worst & row.correct
        if output is not None:
            report.save_json(output)
    report.add(Row(WORST_CASE, worst))
    if output is not None:
        report.save(output)
    return report


def _advance(bar: keras.utils.Progbar, accuracy: float) -> None:
    bar.add(1, [("robust", accuracy)])


def _check_attacks(attacks: Any) -> dict[str, Attack]:
    if not isinstance(attacks, Mapping) or not attacks:
        raise ValueError(
            "Argument `attacks` must be a mapping of names to attacks, with at least one. "
            f"Received: attacks={attacks!r}"
        )
    for name, attack in attacks.items():
        if not isinstance(name, str) or name in (CLEAN, WORST_CASE):
            raise ValueError(
                f"The names in argument `attacks` must be strings other than {CLEAN!r} and "
                f"{WORST_CASE!r}, which the report uses. Received: {name!r}"
            )
        check_attack(attack)
    return dict(attacks)
