"""Checks whether a measured robust accuracy can be trusted."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from keras_robust import validation
from keras_robust.attacks import Attack
from keras_robust.attacks.inputs import as_mask
from keras_robust.evaluation.checks.above_chance import NAME as ABOVE_CHANCE
from keras_robust.evaluation.checks.above_chance import compared_with_chance
from keras_robust.evaluation.checks.case import Case
from keras_robust.evaluation.checks.registry import run_checks
from keras_robust.evaluation.progress import Progress
from keras_robust.metrics.radii import check_attack, radii
from keras_robust.model.arrays import as_images
from keras_robust.model.batches import padded_batches
from keras_robust.model.checks import sparse
from keras_robust.model.classifier import Classifier
from keras_robust.model.images import LazyImages
from keras_robust.report.check_result import CheckResult
from keras_robust.types import Images, Labels, Model

NUM_EXAMPLES = 100
NORMS = ("linf", "l2", "l1")


def check(
    model: Model,
    x: Images,
    y: Labels = None,
    *,
    attack: Attack,
    epsilon: float | None = None,
    norm: str | None = None,
    transfer_from: Model = None,
    num_examples: int = NUM_EXAMPLES,
    chance: float | None = None,
    batch_size: int = 128,
    seed: int = 0,
    steps: int | None = None,
    verbose: int = 1,
    mask: Any = None,
) -> list[CheckResult]:
    """Checks whether a failed attack is evidence that the model is robust.

    An attack can fail because no perturbation fools the model, or because the attack does not find
    the perturbation that does: the gradient is zero, misleading or random. These checks distinguish
    the two cases. They test properties that hold for every model with a useful gradient:

    - The attack fools the model on some example. It is no weaker than plain PGD (20 steps, one
      random start).
    - The accuracy under PGD never rises with more steps. It is not above the accuracy under FGSM,
      Square, random noise in the same ball, or PGD images made on another model.
    - At an epsilon of half the range of `bounds`, where every image can be made the same grey, the
      accuracy under PGD is at most that of guessing. Without a limit, it is 0.
    - The gradient is finite and not zero, both for the loss that attacks here maximize and for the
      cross-entropy, which other libraries maximize. It agrees with finite differences of the
      log-odds along random directions.
    - Neither the softmax nor any tanh or sigmoid layer is saturated. Two passes over the same
      images give the same outputs.
    - Without an attack, the model is more accurate than guessing.

    Args:
        model: Keras model, `kr.RobustModel`, or a callable `x -> logits`.
        x: images, shape `(num_examples, ...)`, or a data set of (image, label) pairs, as for
            `kr.evaluate`.
        y: integer or one-hot labels. Omit it if `x` is a data set. Defaults to `None`.
        attack: the untargeted `kr.attacks.Attack` to judge. Its `bounds`, `from_logits`,
            `objective` and `num_samples` are used for the attacks that it is compared with, too.
        epsilon: float. Radius of the ball, in units of `x`. Required for an attack without an
            epsilon of its own: its larger perturbations then count as failures. Defaults to `None`:
            the epsilon of the attack.
        norm: `"linf"`, `"l2"` or `"l1"`, for an attack without an epsilon of its own. Defaults to
            `None`: the norm of the attack.
        transfer_from: another model for the same data. Adversarial images made on it, with its own
            gradient instead of the `objective`, are compared with those made on `model`. Its
            outputs must be logits or probabilities, as the `from_logits` of the attack says.
            Defaults to `None`: this check is skipped.
        num_examples: int. Maximum number of examples. It is ignored if predictions depend on the
            batch: the whole batch is used then. Defaults to `100`.
        chance: float from 0 to 1. The accuracy of guessing. Defaults to `None`: one divided by the
            number of classes. For the accuracy without an attack, it is the accuracy of guessing
            each class as often as the model predicts it.
        batch_size: int. Number of images per batch. Defaults to `128`.
        seed: int. Random seed of the choice of examples and of the attacks. Defaults to `0`.
        steps: int. Number of batches to read from a data set. Defaults to `None`: all of them.
        verbose: int. 1 shows a progress bar, 0 shows nothing. Defaults to `1`.
        mask: array of 0 and 1 that broadcasts to all images. Attacks may change only the values
            where it is 1. With a mask, the checks at a large epsilon are skipped. Defaults to
            `None`: attacks may change every value.

    Returns:
        List of `kr.evaluation.CheckResult`, one per check, always in the same order. Each has a
        `name`, a `sentence` with the finding, and the `figures` behind it. `passed` is true or
        false, or `None` if the check does not apply or raised an error. An error in one check does
        not stop the others.

    Raises:
        ValueError: before any work, for the same reasons as the attack itself; if the
            attack is targeted; if the radius or norm is missing or given twice; if the outputs of
            `transfer_from` do not fit; or if another argument is not as described above.

    Example:

    >>> import keras, numpy as np, keras_robust as kr
    >>> model = keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(10)])
    >>> x = np.random.rand(32, 8, 8, 1)
    >>> y = np.argmax(model(x), axis=1)
    >>> results = kr.evaluation.check(model, x, y, attack=kr.attacks.PGD(epsilon=0.1), verbose=0)
    >>> [result.name for result in results if result.passed is False]
    []

    Notes:

    - A check that passes proves nothing: it has found no fault. `docs/evaluation.md` describes each
      check, and what to do when it fails.
    - Two attacks are compared on the examples that only one of them fools. The check fails if a
      sign test at the 1% level finds that the attack that should be stronger is weaker. With fewer
      than 7 such examples, it never fails.
    - The examples are chosen at random among those that the model classifies correctly. If
      predictions depend on the batch (`kr.layers.WNLLHead` with `joint=True`), they are the
      correctly classified examples of the first `batch_size` images, which are always run together,
      as in `kr.evaluate`.
    - Apart from the judged attack itself, the checks cost 49 gradients per example and at most 280
      forward passes (400 if predictions depend on the batch), most of them queries of Square. An
      example that is not fooled at half the range of `bounds` costs 20 more gradients; for a sound
      model, there are none.

    Reference:

    - [Carlini et al., 2019](https://arxiv.org/abs/1902.06705), section 5 (the sanity tests)
    - [Athalye et al., 2018](https://arxiv.org/abs/1802.00420), section 3.1 (signs of masked
      gradients)
    - [Tramer et al., 2020](https://arxiv.org/abs/2002.08347)
    """
    check_attack(attack)
    epsilon, norm = _ball(attack, epsilon, norm)
    if chance is not None:
        chance = validation.check_number("chance", chance, exclusive=True, maximum=1.0)
    num_examples = validation.check_count("num_examples", num_examples)
    classifier = Classifier.of(model)
    x, y = as_images(x, y, steps)
    attack.check(classifier, x, y)
    mask = as_mask(mask, x.shape)
    other = check_transfer_from(transfer_from, attack, x, y)
    batch_size = min(validation.check_count("batch_size", batch_size), len(x))

    labels = sparse(y)
    if classifier.depends_on_batch:
        seen = np.arange(batch_size)
        classes = classifier.classes(x[seen], batch_size)
        chosen, counted = _first_batch(classes == labels[seen])
    else:
        seen, classes = _predict_until(num_examples, classifier, x, labels, batch_size, seed)
        chosen = seen[classes == labels[seen]][:num_examples]
        counted = np.arange(len(chosen))
    case = Case(
        classifier=classifier,
        x=x[chosen],
        y=labels[chosen],
        attack=attack,
        name=type(attack).__name__,
        epsilon=epsilon,
        norm=norm,
        batch_size=max(min(batch_size, len(chosen)), 1),
        seed=seed,
        chance=chance,
        transfer_from=other,
        counted=counted,
        predictions=(labels[seen], classes),
        mask=None if mask is None else mask[chosen],
    )
    return run_checks(case, verbose)


def check_evaluation(
    classifier: Classifier,
    x: np.ndarray | LazyImages,
    labels: np.ndarray,
    classes: np.ndarray,
    clean: np.ndarray,
    attacks: Mapping[str, Attack],
    correct: Mapping[str, np.ndarray],
    batch_size: int,
    seed: int,
    transfer_from: Classifier | None,
    progress: Progress,
    verbose: int,
    mask: np.ndarray | None = None,
) -> list[CheckResult]:
    """Checks the attack with the lowest robust accuracy of an evaluation.

    Only attacks with a positive radius in a single norm (L-infinity, L2 or L1) are considered.
    Neither the judged attack nor attacks whose results are already in `progress` are run again. If
    predictions depend on the batch, the examples are those of the evaluation's first batch.

    Args:
        classifier: the model.
        x: images.
        labels: int array, shape `(num_examples,)`: the true classes.
        classes: int array, shape `(num_examples,)`: the classes predicted for `x`.
        clean: bool array, shape `(num_examples,)`: the examples that are classified correctly.
        attacks: mapping of names to attacks.
        correct: mapping of attack names to bool arrays: the examples that are classified correctly
            under the attack.
        batch_size: int.
        seed: int.
        transfer_from: another model, or `None`.
        progress: the store of the attacks' results.
        verbose: int. 1 shows a progress bar, 0 shows nothing.
        mask: bool array of the shape of `x`. Defaults to `None`.
    """
    balls = {name: radii(attack) for name, attack in attacks.items()}
    names = [
        name
        for name, ball in balls.items()
        if len(ball) == 1 and set(ball) <= set(NORMS) and max(ball.values()) > 0
    ]
    if not names:
        sentence = (
            "No attack has an epsilon in a single norm: call `kr.evaluation.check` with an epsilon."
        )
        outcome = compared_with_chance(labels, classes)
        return [
            CheckResult("the figures can be checked", None, sentence),
            CheckResult(ABOVE_CHANCE, outcome.passed, outcome.sentence, outcome.figures),
        ]
    strongest = min(names, key=lambda name: correct[name].mean())
    norm, epsilon = next(iter(balls[strongest].items()))
    if classifier.depends_on_batch:
        chosen, counted = _first_batch(clean[:batch_size])
    else:
        chosen = np.random.default_rng(seed).permutation(np.flatnonzero(clean))[:NUM_EXAMPLES]
        counted = np.arange(len(chosen))
    if verbose:
        print(f"Checking {strongest} on {len(counted)} of {len(x)} examples")
    case = Case(
        classifier=classifier,
        x=x[chosen],
        y=labels[chosen],
        attack=attacks[strongest],
        name=strongest,
        epsilon=epsilon,
        norm=norm,
        batch_size=max(min(batch_size, len(chosen)), 1),
        seed=seed,
        transfer_from=transfer_from,
        counted=counted,
        progress=progress,
        known_robust=correct[strongest][chosen[counted]],
        counts=(int(clean.sum()), int((clean & ~correct[strongest]).sum())),
        predictions=(labels, classes),
        mask=None if mask is None else mask[chosen],
    )
    return run_checks(case, verbose)


def check_transfer_from(
    transfer_from: Model, attack: Attack, x: np.ndarray | LazyImages, y: np.ndarray
) -> Classifier | None:
    """Returns the other model. Raises a `ValueError` if it does not fit the data."""
    if transfer_from is None:
        return None
    classifier = Classifier.of(transfer_from)
    try:
        attack.check(classifier, x, sparse(y))
    except Exception as error:  # Each backend raises its own types of errors.
        raise ValueError(
            "Argument `transfer_from` must be another model for the same images and labels, whose "
            f"outputs agree with the attack's `from_logits`. {type(error).__name__}: {error} "
            f"Received: transfer_from={transfer_from!r}"
        ) from error
    return classifier


def _ball(attack: Attack, epsilon: float | None, norm: str | None) -> tuple[float, str]:
    """Returns the radius and norm of the ball, from the attack or from the arguments."""
    own = radii(attack)
    if own and (epsilon is not None or norm is not None):
        raise ValueError(
            "Arguments `epsilon` and `norm` must be None for an attack with its own epsilon. "
            f"Received: epsilon={epsilon!r}, norm={norm!r}, attack={attack!r}"
        )
    if len(own) > 1:
        raise ValueError(
            f"All members of argument `attack` must have the same norm. Received: attack={attack!r}"
        )
    if own:
        norm, epsilon = next(iter(own.items()))
    elif epsilon is None:
        raise ValueError(
            "Argument `epsilon` must be given for an attack without an epsilon of its own. "
            f"Received: epsilon=None, attack={attack!r}"
        )
    norm = getattr(attack, "norm", None) if norm is None else norm
    epsilon = validation.check_number("epsilon", epsilon, exclusive=True)
    return epsilon, validation.check_choice("norm", norm, NORMS)


def _first_batch(correct: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the indices of the first batch's images, and of its correctly classified images."""
    return np.arange(len(correct)), np.flatnonzero(correct)


def _predict_until(
    num_examples: int,
    classifier: Classifier,
    x: np.ndarray | LazyImages,
    labels: np.ndarray,
    batch_size: int,
    seed: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Predicts the classes of images in random order, until enough are classified correctly.

    Returns:
        The indices of the images, and the classes predicted for them.
    """
    order = np.random.default_rng(seed).permutation(len(x))
    classes = np.empty(0, int)
    for batch in padded_batches(order, batch_size):
        classes = np.append(classes, classifier.classes(x[batch], batch_size))[: len(order)]
        seen = order[: len(classes)]
        if np.sum(classes == labels[seen]) >= num_examples:
            break
    return order[: len(classes)], classes
