"""The robustness report of a classifier."""

import functools
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from keras_robust import validation
from keras_robust.attacks import Attack
from keras_robust.attacks.inputs import as_mask, share_of_ones
from keras_robust.evaluation.attack_list import named_attacks
from keras_robust.evaluation.attacked_batches import attacked_batches
from keras_robust.evaluation.bounds import add_certificate, check_certificate
from keras_robust.evaluation.certificate import Certificate
from keras_robust.evaluation.check import check_evaluation, check_transfer_from
from keras_robust.evaluation.fingerprint import content_hash, fingerprint
from keras_robust.evaluation.pictures import add_pictures, check_pictures
from keras_robust.evaluation.progress import Progress, check_resume
from keras_robust.evaluation.recording import arrays_to_save, file_name, record
from keras_robust.evaluation.shards import SHARD, check_shard, share_of
from keras_robust.evaluation.surrogates import with_surrogates
from keras_robust.metrics.accuracy import attack_in_batches
from keras_robust.metrics.radii import radii, union
from keras_robust.model.arrays import as_images
from keras_robust.model.checks import sparse
from keras_robust.model.classifier import Classifier
from keras_robust.report import plots
from keras_robust.report.data import CERTIFICATE, MASK
from keras_robust.report.report import Report
from keras_robust.report.row import CLEAN, WORST_CASE, Row
from keras_robust.types import Images, Labels, Model


def evaluate(
    model: Model,
    x: Images,
    y: Labels = None,
    attacks: Mapping[str, Attack] | Sequence[Attack] | Attack | None = None,
    batch_size: int = 128,
    output: str | os.PathLike[str] | None = None,
    seed: int = 0,
    worst_case_only: bool = False,
    resume: bool = False,
    checks: bool = True,
    transfer_from: Model = None,
    pictures: bool = False,
    notes: Mapping[str, str] | None = None,
    steps: int | None = None,
    shard: tuple[int, int] | None = None,
    class_names: Sequence[str] | None = None,
    certificate: Certificate | None = None,
    verbose: int = 1,
    mask: Any = None,
) -> Report:
    """Evaluates a classifier's accuracy on clean images and under attacks.

    The report has a row for the clean images, a row for each attack, and a row for the worst case.
    Only the images that the model classifies correctly are attacked. Under an attack, an example
    counts as correct if the model classifies it correctly both before and after the attack. In the
    worst case, it counts as correct if no attack fools the model on it.

    An attack without an `epsilon` searches for perturbations of any size. The accuracy under such
    an attack says little: look at the norms of its perturbations instead. The worst case excludes
    attacks without an `epsilon`, unless there are no others.

    Args:
        model: Keras model, `kr.RobustModel`, `kr.BlackBox`, or a callable `x -> logits`. It is run
            in inference mode, in the state that it has when the evaluation begins.
        x: images, shape `(num_examples, ...)`, or a data set of (image, label) pairs, as for
            Keras's `fit`: a `tf.data.Dataset` (batched or not), a `keras.utils.PyDataset`, a
            torch `DataLoader`, or a generator with `steps`. A data set is read several times, one
            batch at a time. A generator, or a data set that yields different images each time
            (`shuffle`, random augmentation), is read once and held in memory.
        y: integer labels, shape `(num_examples,)`, or one-hot labels, shape
            `(num_examples, num_classes)`; 0 and 1 for a model with one output. Omit it if `x` is a
            data set. Defaults to `None`.
        attacks: mapping of names to untargeted `kr.attacks.Attack`s, with at least one attack. A
            list of attacks or a single attack is also accepted; its attacks are named after their
            class and arguments. Required. Defaults to `None`, which raises a `ValueError`.
        batch_size: int. Number of images per batch. Defaults to `128`.
        output: path of a folder to save the report in, which is created if it does not exist. The
            results of each batch of each attack are saved in its subfolder `progress` as soon as
            they are known. The results of each round (a restart, a target class, a number of
            queries) are saved as well, so an interrupted evaluation loses at most one round. A
            report that is already in the folder is deleted. Defaults to `None`: nothing is saved.
        seed: int. Random seed of the attacks. Defaults to `0`.
        worst_case_only: bool. Whether each attack skips the examples that an earlier attack has
            fooled. The worst case stays the same and costs less. The row of each attack is then
            the accuracy after this attack and all attacks before it. Defaults to `False`.
        resume: bool. Whether to continue an interrupted evaluation in `output`, if there is one,
            instead of starting over. The result is that of an uninterrupted evaluation. Defaults
            to `False`.
        checks: bool. Whether to run the checks of `kr.evaluation.check` on the attack with the
            lowest robust accuracy, among the attacks with an `epsilon`. Defaults to `True`.
        transfer_from: another model for the same data, or a callable. The checks compare its
            adversarial images with those made on the model itself. Its outputs must be logits or
            probabilities, as the `from_logits` of the attacks says. Defaults to `None`: this check
            is skipped.
        pictures: bool. Whether to add figures for the strongest attack with an `epsilon` (and with
            steps, if any attack has them): accuracy against epsilon, accuracy against the number
            of steps, and the principal components of clean and attacked features. The curves cost
            several times as much as the attack. The principal components need scikit-learn.
            Defaults to `False`.
        notes: mapping of strings to strings. Further facts that the report shows about the model,
            the data and how it was made. The names `"mask"` and `"certificate"` are reserved for
            the report. Defaults to `None`.
        steps: int. Number of batches to read from a data set. Defaults to `None`: all of them.
        shard: pair of ints `(i, n)`. Evaluates the i-th of n shares of the batches, with i from 1
            to n. Each share is evaluated in a separate process with a separate `output`, and its
            report covers only its examples. `kr.evaluation.merge` combines the reports. A share
            runs no checks, because they need all examples. Defaults to `None`: everything is
            evaluated here.
        class_names: sequence of strings. Names of the model's classes in the report, in the order
            of the model's outputs. Defaults to `None`: the numbers of the classes.
        certificate: `kr.evaluation.Certificate` of the same images, if `model` is the
            `kr.evaluation.SmoothedClassifier` that it certifies. The report then has a row with
            the certified accuracy within the radii of the attacks, and a figure of both bounds
            against the L2 radius. The predicted class of a clean image is then the class with the
            most votes in the certificate. Defaults to `None`.
        verbose: int. 1 shows the current round of each attack and an estimate of the remaining
            time: in a single line on a terminal or in a notebook, in a new line every 10 seconds
            elsewhere. 2 prints a line every minute. 0 shows nothing. Defaults to `1`.
        mask: array of 0 and 1 that broadcasts to all images. Attacks may change only the values
            where it is 1, for example the area of a sticker, or the columns of a table that an
            adversary could forge. Defaults to `None`: attacks may change every value.

    Returns:
        `kr.evaluation.Report`: a row for the clean images, a row for each attack, and a row for the
        worst case over all attacks per example. It also holds the accuracies of each class
        (`per_class`) and the class with the lowest accuracy (`worst_class`).

    Raises:
        ValueError: before any work, if `attacks` is empty or holds anything but untargeted attacks;
            if an attack cannot be run on `x`, `y` and `model`; if `resume` is true without an
            `output`, or the evaluation in `output` was started with a different model, images,
            labels, attacks, seed, batch size or backend; if the outputs of `transfer_from` do not
            fit, or `transfer_from` is given with `checks=False`; if `shard` is given without an
            `output`, or with `worst_case_only`, `pictures` or `certificate`, which need all shares;
            if `certificate` belongs to a different model, noise or images; if `class_names` does
            not have one name per class; if `notes` contains a reserved name.

    Example:

    >>> import keras, numpy as np, keras_robust as kr
    >>> model = keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(10)])
    >>> x = np.random.rand(32, 8, 8, 1).astype("float32")
    >>> y = np.random.randint(0, 10, 32)
    >>> report = kr.evaluate(model, x, y, {"FGSM": kr.attacks.FGSM(epsilon=1.0)}, verbose=0)
    >>> report.to_dict()["rows"][-1]["name"], report.accuracy("worst case")
    ('worst case', 0.0)

    Notes:

    - On TensorFlow, an attack on a model without any gradient raises a `ValueError` when it is
      called directly. `evaluate` counts its examples as not fooled, and its row says that it could
      not run. This is no evidence of robustness, and the checks fail. On JAX, the gradient of such
      a model is 0, and the attack runs with it.
    - If the model has a `kr.layers.WNLLHead` in its WNLL phase, each gradient-based attack with an
      `epsilon` and without an `objective` is also run through each surrogate gradient of
      `kr.attacks.WNLLSurrogate`. These attacks have rows of their own.
    - If a prediction depends on the other images in its batch (`head.joint`), the batches are
      consecutive examples, and every attack perturbs each batch as a whole. The checks use the
      first batch only.
    """
    attacks = named_attacks(attacks)
    notes = _checked_notes(notes)
    batch_size = validation.check_count("batch_size", batch_size)
    check_resume(resume, output)
    if transfer_from is not None and not checks:
        raise ValueError(
            "Argument `transfer_from` is used by the checks and requires `checks=True`. "
            "Received: checks=False"
        )
    if shard is not None:
        check_shard(
            shard, output, worst_case_only=worst_case_only, pictures=pictures,
            certificate=certificate,
        )  # fmt: skip
    classifier = Classifier.of(model)
    x, y = as_images(x, y, steps)
    attacks = with_surrogates(classifier, attacks)
    classifier.check(x, y, *((attack.bounds, attack.from_logits) for attack in attacks.values()))
    class_names = _checked_names(class_names, classifier.num_classes)
    for attack in attacks.values():
        attack.check_classifier(classifier, x)
    mask = as_mask(mask, x.shape)
    other = check_transfer_from(transfer_from, next(iter(attacks.values())), x, y)
    labels = sparse(y)
    if certificate is not None:
        check_certificate(certificate, classifier, x, labels)
    if output is not None:
        plots.require_matplotlib()
    if pictures:
        check_pictures(classifier, x)

    batch_size = min(batch_size, len(x))
    classes = classifier.classes(x, batch_size) if certificate is None else certificate.votes
    progress = Progress()
    if output is not None:
        facts = fingerprint(
            classifier.model, x, y, classes, attacks,
            seed=seed, batch_size=batch_size, worst_case_only=worst_case_only,
            **({} if shard is None else {SHARD: tuple(shard)}),
            **({} if mask is None else {"mask": content_hash(mask)}),
            **({} if certificate is None else {"certificate": certificate.facts}),
        )  # fmt: skip
        progress = Progress(pathlib.Path(output) / "progress", facts, resume)
        if not resume:
            Report.delete(output)
    # Saved, because predictions on a GPU can differ from run to run: the first run's count.
    saved = progress.arrays("clean", lambda: {"correct": classes == labels, "labels": labels})
    clean = saved["correct"]
    report = Report(
        num_examples=len(x),
        batch_size=batch_size,
        seed=seed,
        worst_case_only=worst_case_only,
        notes=notes,
        labels=labels,
        class_names=class_names,
    )
    report.add(Row(CLEAN, clean))
    if mask is not None:
        share = share_of_ones(mask)
        report.notes[MASK] = f"attacks change no more than {share:.2%} of an image's values"

    limited = [name for name, attack in attacks.items() if radii(attack)] or list(attacks)
    worst = clean
    for number, (name, attack) in enumerate(attacks.items()):
        remaining = worst if worst_case_only else clean
        none_yet = np.zeros(len(x), bool)
        row = Row(name, remaining.copy(), repr(attack), radii(attack), attacked=none_yet)
        if verbose:
            print(f"Running {name} on {remaining.sum()} of {len(x)} examples")
        batches = attack_in_batches(
            classifier,
            x,
            labels,
            attack,
            remaining,
            batch_size,
            seed,
            needs_gradient=False,
            mask=mask,
        )
        found_batches = attacked_batches(
            batches,
            attack.round_costs(classifier.num_classes),
            file=file_name(number),
            keep=functools.partial(arrays_to_save, labels),
            progress=progress,
            verbose=verbose,
            shard=shard or (1, 1),
        )
        report.add(row, record(row, (found for _, found in found_batches)))
        if name in limited:
            worst = worst & row.correct
        if output is not None and shard is None:
            report.save_json(output)
    if checks and shard is None:
        correct = {name: report.row(name).correct for name in attacks}
        report.checks = check_evaluation(
            classifier,
            x,
            labels,
            classes,
            clean,
            attacks,
            correct,
            batch_size,
            seed,
            other,
            progress,
            verbose,
            mask,
        )
    if pictures:
        add_pictures(report, classifier, x, labels, attacks, progress, verbose, mask)
    worst_radii = union([radii(attacks[name]) for name in limited])
    if certificate is not None:
        add_certificate(report, certificate, worst_radii, num_values=x[0].size)
    report.add(Row(WORST_CASE, worst, radii=worst_radii))
    if shard is not None:
        report = share_of(report, shard)
    if output is not None:
        report.save(output)
    return report


def _checked_notes(notes: Mapping[str, str] | None) -> dict[str, str]:
    checked = dict(notes or {})
    reserved = [name for name in (MASK, CERTIFICATE) if name in checked]
    if reserved:
        raise ValueError(
            f"Argument `notes` must not have the names {MASK!r} and {CERTIFICATE!r}, which are "
            f"reserved for the report's own notes. Received: {reserved}"
        )
    return checked


def _checked_names(class_names: Any, num_classes: int) -> list[str]:
    """Returns the name of each class, or its number if `class_names` is `None`."""
    if class_names is None:
        return [str(number) for number in range(num_classes)]
    names = list(class_names) if isinstance(class_names, list | tuple) else []
    if len(names) != num_classes or not all(isinstance(name, str) for name in names):
        raise ValueError(
            f"Argument `class_names` must be {num_classes} strings, one for each class, in the "
            f"order of the model's outputs. Received: class_names={class_names!r}"
        )
    return names
