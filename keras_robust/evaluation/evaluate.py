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
from keras_robust.evaluation.recording import file_name, record, shortened
from keras_robust.evaluation.shards import SHARD, check_shard, share_of
from keras_robust.evaluation.surrogates import with_surrogates
from keras_robust.metrics.accuracy import attack_in_batches
from keras_robust.metrics.radii import radii, union
from keras_robust.model.arrays import as_images, sparse
from keras_robust.model.classifier import Classifier
from keras_robust.report import plots
from keras_robust.report.data import CERTIFICATE, MASK
from keras_robust.report.report import Report
from keras_robust.report.row import CLEAN, WORST_CASE, Row


def evaluate(
    model: Any,
    x: Any,
    y: Any = None,
    attacks: Mapping[str, Attack] | Sequence[Attack] | Attack | None = None,
    batch_size: int = 128,
    output: str | os.PathLike[str] | None = None,
    seed: int = 0,
    worst_case_only: bool = False,
    resume: bool = False,
    checks: bool = True,
    transfer_from: Any = None,
    pictures: bool = False,
    notes: Mapping[str, str] | None = None,
    steps: int | None = None,
    shard: tuple[int, int] | None = None,
    class_names: Sequence[str] | None = None,
    certificate: Certificate | None = None,
    verbose: int = 1,
    mask: Any = None,
) -> Report:
    """Measures a classifier's accuracy on clean images and under attacks.

    An example counts for an attack if it is classified correctly both before and after it; in
    the worst case, if it is after every attack. Examples that are misclassified to begin with
    are not attacked at all.

    An attack without an `epsilon` goes as far as it needs to, so the accuracy under it says
    little: look at the norms of its perturbations. The worst case leaves such attacks out, unless
    there are no others.

    An attack that finds no gradient at all raises a `ValueError` where it is called by itself, on
    TensorFlow. Here its examples count as not fooled, and its row says so: that is no robustness,
    and the checks fail. On JAX such a gradient is 0, and the attack does what it can without one.

    For a model with a `kr.layers.WNLLHead` in its WNLL phase every attack by gradients is joined by
    one through each surrogate of `kr.attacks.WNLLSurrogate`; and where a prediction depends on its
    batch (`head.joint`), batches are those of the examples in their order, whole in every attack;
    the checks look at the first of them.

    Args:
        model: Keras model, `kr.RobustModel`, `kr.BlackBox`, or a callable `x -> logits`. It is run
            in inference mode, as it is when the evaluation begins.
        x: images, shape `(num_examples, ...)`; or a data set of pairs of images and labels, as
            for Keras's `fit`: a `tf.data.Dataset` (batched or not), a `keras.utils.PyDataset`, a
            torch `DataLoader`, or a generator with `steps`. A data set is read several times, a
            batch at a time; a generator, and a data set that holds other images each time
            (`shuffle`, random augmentation), is read once and held in memory.
        y: integer labels, shape `(num_examples,)`, or one-hot labels, shape
            `(num_examples, num_classes)`; 0 and 1 for a model of one output. Defaults to `None`,
            for a data set.
        attacks: mapping of names to `kr.attacks.Attack`s, untargeted, at least one; or a list of
            them, or one alone, which are named by their class and arguments. Defaults to `None`,
            which is refused.
        batch_size: int. Defaults to `128`.
        output: folder to save the report in, made if need be. What each batch of each attack has
            found is saved in its folder `progress` at once, and while a batch is attacked what each
            round has (a restart, a target class, some queries), so that an interrupted evaluation
            loses one round at most. A report that is there already is deleted. Defaults to
            `None`: nothing is saved.
        seed: int. Seed of the attacks' random numbers. Defaults to `0`.
        worst_case_only: bool. Whether to leave out, in each attack, the examples that an earlier
            one has fooled. The worst case is the same and costs less; the row of each attack
            then is the accuracy after it and all before it. Defaults to `False`.
        resume: bool. Whether to continue the evaluation that was begun in `output`, where there
            is one, rather than begin anew. The result is that of an evaluation that was not
            interrupted. Defaults to `False`.
        checks: bool. Whether to run the checks of `kr.evaluation.check` on the attack that has
            the lowest robust accuracy, of those with an `epsilon`. Defaults to `True`.
        transfer_from: another model for the same data, or a callable, whose adversarial images
            the checks compare with the model's own. Its outputs must be what the attacks'
            `from_logits` says. Defaults to `None`: that check is left out.
        pictures: bool. Whether to add what the strongest attack with an `epsilon`, and steps if
            one has them, shows: accuracy over epsilon and over the number of steps, which cost
            several times the attack, and principal components of clean and attacked features,
            for which scikit-learn must be installed. Defaults to `False`.
        notes: mapping of strings to strings, what else the report is to say about the model, the
            data and how it was made. The names `"mask"` and `"certificate"` are the report's own.
            Defaults to `None`.
        steps: int. How many batches of a data set to read. Defaults to `None`: all of them.
        shard: pair of ints `(i, n)`: the i-th of n shares of the batches, 1 for the first. Each
            share is evaluated by a process of its own, in an `output` of its own, whose report is
            of these examples alone; `kr.evaluation.merge` makes the report of all. The checks look
            at all, so a share runs none. Defaults to `None`: everything is evaluated here.
        class_names: sequence of strings, what the report calls the classes, one for each of the
            model's, in the order of its outputs. Defaults to `None`: their numbers.
        certificate: `kr.evaluation.Certificate` of the same images, where `model` is the
            `kr.evaluation.SmoothedClassifier` that it is about. The report then has a row for what
            is certified within the radii of the attacks, and a picture of both bounds over the L2
            radius. The class of an unperturbed image is the one that has most of the certificate's
            votes. Defaults to `None`: there is none.
        verbose: int. 1 shows for each attack which round runs and about how long it will still
            take, on a terminal or in a notebook in one line, elsewhere in a line every 10 seconds;
            2 in a line every minute; 0 shows nothing. Defaults to `1`.
        mask: array of 0 and 1 that broadcasts to all images, 1 where attacks may change them: a
            sticker's place, the columns of a table that somebody could forge. Defaults to `None`:
            everywhere.

    Returns:
        `kr.evaluation.Report`: a row for the clean images, one for each attack, and one for the
        worst case over all attacks per example; the accuracies of each class (`per_class`), and
        the class with the lowest one (`worst_class`).

    Raises:
        ValueError: before any work, if `attacks` is empty or holds something else than untargeted
            attacks, or if one of them cannot work on `x`, `y` and `model`; if `resume` is true
            without an `output`, or the evaluation there was begun with another model, other
            images, labels, attacks, seed, batch size or backend; if the outputs of
            `transfer_from` do not fit, or `checks` is false with it; if there is a `shard`
            without an `output`, or with `worst_case_only`, `pictures` or `certificate`, which need
            the others; if the `certificate` is of another model, noise or images; if
            there is not one of `class_names` for each class; if `notes` has a name of the report's.

    Example:

    >>> import keras, numpy as np, keras_robust as kr
    >>> model = keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(10)])
    >>> x = np.random.rand(32, 8, 8, 1).astype("float32")
    >>> y = np.random.randint(0, 10, 32)
    >>> report = kr.evaluate(model, x, y, {"FGSM": kr.attacks.FGSM(epsilon=1.0)}, verbose=0)
    >>> report.to_dict()["rows"][-1]["name"], report.accuracy("worst case")
    ('worst case', 0.0)
    """
    attacks = named_attacks(attacks)
    notes = _checked_notes(notes)
    batch_size = validation.check_count("batch_size", batch_size)
    check_resume(resume, output)
    if transfer_from is not None and not checks:
        raise ValueError(
            "Argument `transfer_from` is for the checks, and needs `checks=True`. "
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
    # On a GPU, a prediction may differ from one run to the next: what was found first counts.
    found = progress.arrays("clean", lambda: {"correct": classes == labels, "labels": labels})
    clean = found["correct"]
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
        nothing = np.zeros(len(x), bool)
        row = Row(name, remaining.copy(), repr(attack), radii(attack), attacked=nothing)
        if verbose:
            print(f"{name} on {remaining.sum()} of {len(x)} examples")
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
            keep=functools.partial(shortened, labels),
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
    taken = [name for name in (MASK, CERTIFICATE) if name in checked]
    if taken:
        raise ValueError(
            f"Argument `notes` must not have the names {MASK!r} and {CERTIFICATE!r}, under which "
            f"the report has notes of its own. Received: {taken}"
        )
    return checked


def _checked_names(class_names: Any, num_classes: int) -> list[str]:
    """The name of each class: its number where none are given."""
    if class_names is None:
        return [str(number) for number in range(num_classes)]
    names = list(class_names) if isinstance(class_names, list | tuple) else []
    if len(names) != num_classes or not all(isinstance(name, str) for name in names):
        raise ValueError(
            f"Argument `class_names` must be {num_classes} strings, one for each of the model's "
            f"classes in the order of its outputs. Received: class_names={class_names!r}"
        )
    return names
