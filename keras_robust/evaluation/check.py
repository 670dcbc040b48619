"""Whether a measured robust accuracy can be trusted."""

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
from keras_robust.model.arrays import as_images, padded_batches, sparse
from keras_robust.model.classifier import Classifier
from keras_robust.model.images import Images
from keras_robust.report.check_result import CheckResult

NUM_EXAMPLES = 100
NORMS = ("linf", "l2", "l1")


def check(
    model: Any,
    x: Any,
    y: Any = None,
    *,
    attack: Attack,
    epsilon: float | None = None,
    norm: str | None = None,
    transfer_from: Any = None,
    num_examples: int = NUM_EXAMPLES,
    chance: float | None = None,
    batch_size: int = 128,
    seed: int = 0,
    steps: int | None = None,
    verbose: int = 1,
    mask: Any = None,
) -> list[CheckResult]:
    """Checks that an attack's failure means that the model is robust.

    A model can withstand an attack because no perturbation fools it, or because the attack does
    not find the one that does: the gradient is zero, misleads or is random. These checks tell
    the second from the first by things that must hold for any model with a useful gradient:

    - the attack fools somebody; it is no weaker than plain PGD (20 steps, one random start);
    - PGD's accuracy never rises with more steps, and is not above that of FGSM, of Square,
      of random noise in the same ball, or of PGD's images made on another model;
    - at an epsilon of half the range of `bounds`, where all images can be made the same grey,
      accuracy is at most that of guessing; without a limit, it is 0;
    - the gradient is finite, not zero (neither that of what attacks here climb, nor that of the
      cross-entropy, which other libraries climb), and agrees with finite differences of the
      log-odds along random directions;
    - neither the softmax nor a tanh or sigmoid layer is saturated; two passes of the same images
      give the same outputs;
    - without an attack, the model classifies more images correctly than guesses do.

    Two attacks are compared example by example, on those that only one of the two fools. The
    check fails where a sign test finds the one that should be stronger to be the weaker, at a
    level of 1%: with fewer than 7 such examples it never does. A check passing is no proof; it
    has found nothing wrong. See `docs/evaluation.md` for each, and what to do when it fails.

    The examples are a random choice of those that the model classifies correctly; or, where its
    predictions depend on the batch (`kr.layers.WNLLHead` with `joint=True`), those of the first
    `batch_size`, which are always run together, as in `kr.evaluate`. For each the
    checks cost, beside the judged attack itself, 49 gradients (20 more where the example stands
    at half the range, which a sound model's do not) and at most 280 passes forward (400 where
    predictions depend on the batch), most of them Square's queries.

    Args:
        model: Keras model, `kr.RobustModel`, or a callable `x -> logits`.
        x: images, shape `(num_examples, ...)`, or a data set of pairs of images and labels,
            as for `kr.evaluate`.
        y: integer or one-hot labels. Defaults to `None`, for a data set.
        attack: `kr.attacks.Attack`, untargeted, whose success on `model` is to be judged. Its
            `bounds`, `from_logits`, `objective` and `num_samples` are those of the attacks that
            it is compared with.
        epsilon: float. Radius of the ball, in units of `x`. Defaults to `None`: the attack's
            own. It must be given for an attack without one, whose larger perturbations then
            count as failures.
        norm: `"linf"`, `"l2"` or `"l1"`, for an attack without an `epsilon`. Defaults to `None`:
            the attack's own.
        transfer_from: another model for the same data, whose adversarial images are to be
            compared; it is attacked by its own gradient, not by the `objective`. Its outputs must
            be what the attack's `from_logits` says. Defaults to `None`: that check is left out.
        num_examples: int. How many examples to use, at most; not where predictions depend on the
            batch, which is used as a whole. Defaults to `100`.
        chance: float from 0 to 1. The accuracy of guessing. Defaults to `None`: one divided by
            the number of classes; for the accuracy without an attack, that of guessing each class
            as often as the model does.
        batch_size: int. Defaults to `128`.
        seed: int. Seed of the choice of examples and of all random numbers. Defaults to `0`.
        steps: int. How many batches of a data set to read. Defaults to `None`: all of them.
        verbose: int. 1 shows a progress bar, 0 nothing. Defaults to `1`.
        mask: array of 0 and 1 that broadcasts to all images, 1 where attacks may change them.
            Defaults to `None`: everywhere. With one, the checks at a large epsilon are left out.

    Returns:
        List of `kr.evaluation.CheckResult`, one for each check, always in the same order: its
        `name`, whether it `passed` (`None` if it does not apply or came upon an error, which
        stops no other), a `sentence`, and the `figures` behind it.

    Raises:
        ValueError: as the attack, before any work, and if it is targeted, if the radius or norm
            is not known or is given twice, if the outputs of `transfer_from` do not fit, or if
            another argument is not as described above.

    Example:

    >>> import keras, numpy as np, keras_robust as kr
    >>> model = keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(10)])
    >>> x = np.random.rand(32, 8, 8, 1)
    >>> y = np.argmax(model(x), axis=1)
    >>> results = kr.evaluation.check(model, x, y, attack=kr.attacks.PGD(epsilon=0.1), verbose=0)
    >>> [result.name for result in results if result.passed is False]
    []

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
        chosen, counted = _whole(classes == labels[seen])
    else:
        seen, classes = _look(classifier, x, labels, num_examples, batch_size, seed)
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
        answers=(labels[seen], classes),
        mask=None if mask is None else mask[chosen],
    )
    return run_checks(case, verbose)


def check_evaluation(
    classifier: Classifier,
    x: np.ndarray | Images,
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
    """Checks the attack of an evaluation with the lowest robust accuracy.

    The attack is not run again, nor are those of the checks whose results are in `progress`.
    Attacks without a radius, or of another norm, are left out. Where predictions depend on the
    batch, the examples are those of the evaluation's first batch.

    Args:
        classes: int array, shape `(num_examples,)`: the classes predicted for `x`.
        clean: bool array, shape `(num_examples,)`: the examples that are classified correctly.
        correct: mapping of attacks' names to the examples that withstand them.
    """
    balls = {name: radii(attack) for name, attack in attacks.items()}
    names = [
        name
        for name, ball in balls.items()
        if len(ball) == 1 and set(ball) <= set(NORMS) and max(ball.values()) > 0
    ]
    if not names:
        sentence = "No attack has an epsilon in one norm: call `kr.evaluation.check` with one."
        outcome = compared_with_chance(labels, classes)
        return [
            CheckResult("the figures can be checked", None, sentence),
            CheckResult(ABOVE_CHANCE, outcome.passed, outcome.sentence, outcome.figures),
        ]
    strongest = min(names, key=lambda name: correct[name].mean())
    norm, epsilon = next(iter(balls[strongest].items()))
    if classifier.depends_on_batch:
        chosen, counted = _whole(clean[:batch_size])
    else:
        chosen = np.random.default_rng(seed).permutation(np.flatnonzero(clean))[:NUM_EXAMPLES]
        counted = np.arange(len(chosen))
    if verbose:
        print(f"checks of {strongest} on {len(counted)} of {len(x)} examples")
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
        standing_judged=correct[strongest][chosen[counted]],
        counts=(int(clean.sum()), int((clean & ~correct[strongest]).sum())),
        answers=(labels, classes),
        mask=None if mask is None else mask[chosen],
    )
    return run_checks(case, verbose)


def check_transfer_from(
    transfer_from: Any, attack: Attack, x: np.ndarray | Images, y: np.ndarray
) -> Classifier | None:
    """The other model; raises a `ValueError` for what is no model for the same data."""
    if transfer_from is None:
        return None
    classifier = Classifier.of(transfer_from)
    try:
        attack.check(classifier, x, sparse(y))
    except Exception as error:  # backends raise errors of their own
        raise ValueError(
            "Argument `transfer_from` must be another model for the same images and labels, with "
            f"outputs as the attack's `from_logits` says. {type(error).__name__}: {error} "
            f"Received: transfer_from={transfer_from!r}"
        ) from error
    return classifier


def _ball(attack: Attack, epsilon: float | None, norm: str | None) -> tuple[float, str]:
    """The radius and norm, from the attack or from the arguments."""
    own = radii(attack)
    if own and (epsilon is not None or norm is not None):
        raise ValueError(
            "Arguments `epsilon` and `norm` must be None for an attack that has its own. "
            f"Received: epsilon={epsilon!r}, norm={norm!r}, attack={attack!r}"
        )
    if len(own) > 1:
        raise ValueError(
            "The parts of argument `attack` must all have the same norm. "
            f"Received: attack={attack!r}"
        )
    if own:
        norm, epsilon = next(iter(own.items()))
    elif epsilon is None:
        raise ValueError(
            "Argument `epsilon` must be given for an attack that has none. "
            f"Received: epsilon=None, attack={attack!r}"
        )
    norm = getattr(attack, "norm", None) if norm is None else norm
    epsilon = validation.check_number("epsilon", epsilon, exclusive=True)
    return epsilon, validation.check_choice("norm", norm, NORMS)


def _whole(correct: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The indices of the first batch, and of those in it that are classified correctly."""
    return np.arange(len(correct)), np.flatnonzero(correct)


def _look(
    classifier: Classifier,
    x: np.ndarray | Images,
    labels: np.ndarray,
    num_examples: int,
    batch_size: int,
    seed: int,
) -> tuple[np.ndarray, np.ndarray]:
    """The classes of images in random order, until enough are classified correctly.

    Returns:
        The images' indices, and the classes predicted for them.
    """
    order = np.random.default_rng(seed).permutation(len(x))
    classes = np.empty(0, int)
    for batch in padded_batches(order, batch_size):
        classes = np.append(classes, classifier.classes(x[batch], batch_size))[: len(order)]
        seen = order[: len(classes)]
        if np.sum(classes == labels[seen]) >= num_examples:
            break
    return order[: len(classes)], classes
