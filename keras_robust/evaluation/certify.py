"""Certified robustness by randomized smoothing."""

import os
import pathlib
from typing import Any

import keras
import numpy as np

from keras_robust import validation
from keras_robust.attacks.journal import Arrays
from keras_robust.evaluation.certificate import Certificate, require_scipy
from keras_robust.evaluation.fingerprint import fingerprint
from keras_robust.evaluation.progress import Progress, check_resume
from keras_robust.model.arrays import as_images, sparse
from keras_robust.model.classifier import Classifier
from keras_robust.model.images import Images
from keras_robust.model.smoothed import SmoothedClassifier, grid_step

# No normal number that NumPy draws is as large as this.
_LARGEST_NORMAL = 16.0
# The whole numbers that float32 has without a gap.
_WHOLE_NUMBERS = 2.0**24


def certify(
    model: Any,
    x: Any,
    y: Any = None,
    stddev: float | None = None,
    num_samples: int = 100_000,
    num_selection: int = 100,
    alpha: float = 0.001,
    batch_size: int = 128,
    output: str | os.PathLike[str] | None = None,
    seed: int = 0,
    resume: bool = False,
    steps: int | None = None,
    verbose: int = 1,
) -> Certificate:
    """Certifies within which L2 radius a smoothed classifier keeps its answer.

        g(x) = argmax_c P(f(x + n) = c),    n ~ N(0, stddev^2)
        p    = a lower bound of P(f(x + n) = c_A)
        R    = stddev * Phi^-1(p):    g(x + d) = c_A wherever norm(d) < R

    An attack that fails proves nothing. Here, `g` has the class `c_A` in the whole ball, whatever
    anyone tries, but for a probability of `alpha` for each example, with which the votes mislead.
    What is certified is the smoothed classifier `g`, the vote of `f` over noisy copies, and not the
    model `f` itself.

    The class is the one that most of `num_selection` noisy copies are given. `num_samples` other
    copies vote on it, and `p` is the bound of Clopper and Pearson, which is exact. Where `p` is not
    above 1/2 it abstains. A network is worth certifying if it was trained on such noise: put a
    `keras.layers.GaussianNoise(stddev)` first, which is idle in inference. Noisy copies are not
    clipped to any range: the model must take what it gets.

    **In floating point.** Voracek and Hein (2023) show that certificates can be wrong where the
    noise is added in floating point: the last bits of `x + n` reveal `x`, and a model can answer to
    them. So `x + n` is computed in float64 and rounded to a grid. Its step `s` is a power of 2,
    from `stddev / 512` to `stddev / 256`. The model is given multiples of `s` alone, exact in
    float32. The model after such rounding is a classifier of real numbers, of which the theorem
    holds.

    Unlike there, images need not lie on the grid, and the noise is not drawn bit by bit. NumPy's
    normal numbers and the sum are off by a few units of the 53rd bit. That changes the
    probability of no class by more than

        delta = num_values * 2^-51 * (max |x| + 64 stddev) / s

    (6e-9 for MNIST), and the radius is computed from `p - delta` and `1/2 + delta`. What is not
    covered: the random numbers are pseudo-random, where the proof has true ones; the model must be
    a function of each image alone, however it rounds inside, so that the same image in
    another place of a batch must not get another class; SciPy's quantiles are taken for exact.

    The noise of an example follows from `seed` and its number. It is the same on every backend and
    for every batch size. One batch of noisy copies is in memory at a time.

    Args:
        model: Keras model, `kr.RobustModel`, `kr.BlackBox`, or a callable `x -> outputs`. It is run
            in inference mode. The class is the one with the highest output.
        x: images, shape `(num_examples, ...)`, or a data set of pairs of images and labels,
            as for `kr.evaluate`.
        y: integer or one-hot labels. Defaults to `None`, for a data set.
        stddev: float. Standard deviation of the noise, in units of `x`. Defaults to `None`, which
            is refused.
        num_samples: int. How many noisy copies of each example vote. Where all of them agree the
            radius is `stddev * Phi^-1(alpha^(1 / num_samples))`: 3.8 times `stddev` for the
            default, 2.5 times for 1,000. Defaults to `100000`.
        num_selection: int. How many others choose the class. Defaults to `100`.
        alpha: float, more than 0 and at most 0.5. The probability with which an example's
            certificate may be wrong. Defaults to `0.001`.
        batch_size: int. How many noisy copies of an example the model gets at once. Defaults to
            `128`.
        output: folder to save `certificate.json` in, made if need be. The counts of each example
            are saved there at once, so that an interruption loses one example at most. A
            certificate that is there already is deleted. Defaults to `None`: nothing is saved.
        seed: int. Seed of the noise. Defaults to `0`.
        resume: bool. Whether to continue what was begun in `output`, where there is something.
            Defaults to `False`.
        steps: int. How many batches of a data set to read. Defaults to `None`: all of them.
        verbose: int. 1 shows a progress bar, 0 nothing. Defaults to `1`.

    Returns:
        `kr.evaluation.Certificate`: the class and radius of each example, abstentions,
        `certified_accuracy(radius)` and its `curve()`. `kr.evaluate(..., certificate=...)` shows it
        beside attacks on the `kr.evaluation.SmoothedClassifier`.

    Raises:
        ValueError: before any work, if an argument is not as described above, if `stddev` is too
            small for float32 beside the values of `x`, or if the model's answer to an image depends
            on others in its batch; if `resume` is true without an `output`, or what was begun
            there was of another model, other images or other arguments.
        ImportError: if SciPy is not installed.

    Example:

    >>> import keras, numpy as np, keras_robust as kr
    >>> model = keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(10)])
    >>> x = np.random.rand(4, 8, 8, 1).astype("float32")
    >>> y = np.argmax(model(x), axis=1)
    >>> certificate = kr.evaluation.certify(model, x, y, stddev=0.01, num_samples=1000, verbose=0)
    >>> certificate.certified_accuracy(0.0) >= certificate.certified_accuracy(0.02)
    True

    Reference:

    - [Cohen et al., 2019](https://arxiv.org/abs/1902.02918), section 3.2
    - [Voracek & Hein, 2023](https://arxiv.org/abs/2207.07209)
    """
    if stddev is None:
        raise ValueError(
            "Argument `stddev` must be given: the standard deviation of the noise, in units of the "
            "images. Received: stddev=None"
        )
    stddev = validation.check_number("stddev", stddev, exclusive=True)
    num_samples = validation.check_count("num_samples", num_samples)
    num_selection = validation.check_count("num_selection", num_selection)
    alpha = validation.check_number("alpha", alpha, exclusive=True, maximum=0.5)
    batch_size = validation.check_count("batch_size", batch_size)
    check_resume(resume, output)
    require_scipy()
    classifier = Classifier.of(model)
    x, y = as_images(x, y, steps)
    num_classes = classifier.check(x, y)
    _check_model(classifier)
    rounding = _rounding(x, stddev)

    batch_size = min(batch_size, num_selection + num_samples)
    labels = sparse(y).astype(int)
    facts = facts_of(
        classifier, x, labels,
        stddev=stddev, num_samples=num_samples, num_selection=num_selection, seed=seed,
    )  # fmt: skip
    progress = Progress()
    if output is not None:
        progress = Progress(pathlib.Path(output) / "certificate", facts, resume)
        Certificate.delete(output)

    num_batches = -(-(num_selection + num_samples) // batch_size)
    bar = keras.utils.Progbar(len(x) * num_batches, verbose=verbose)
    selected, counts, votes = np.zeros((3, len(x)), int)
    for number in range(len(x)):

        def count(number: int = number) -> Arrays:
            noise = Noise(x[number], stddev, [seed, number])
            chosen, voted = _count(
                classifier, noise, (num_selection, num_samples), num_classes, batch_size, bar
            )
            return {"selection": chosen, "votes": voted}

        found = progress.arrays(f"{number:06}", count)
        bar.update((number + 1) * num_batches)
        selected[number] = found["selection"].argmax()
        counts[number] = found["votes"][selected[number]]
        votes[number] = found["votes"].argmax()
    certificate = Certificate(
        stddev, num_samples, num_selection, alpha, rounding, labels, selected, counts, votes, facts
    )
    if output is not None:
        certificate.save(output)
    return certificate


def facts_of(
    classifier: Classifier, x: np.ndarray | Images, labels: np.ndarray, **settings: Any
) -> dict[str, str]:
    """What the votes depend on."""
    is_keras = classifier.is_keras
    classes = labels if is_keras else classifier.classes(x, min(len(x), 128))
    return fingerprint(classifier.model, x, labels, classes, {}, **settings)


class Noise:
    """Noisy copies of an image, on a grid that float32 has; the same however many are asked for.

    Args:
        image: array.
        stddev: float.
        seed: seed of NumPy's random numbers.
    """

    def __init__(self, image: np.ndarray, stddev: float, seed: Any) -> None:
        self._step = grid_step(stddev)
        # Powers of 2: these quotients are exact.
        self._image, self._stddev = image.astype("float64") / self._step, stddev / self._step
        self._dtype = "float64" if image.dtype == "float64" else "float32"
        self._rng = np.random.default_rng(seed)

    def draw(self, count: int) -> np.ndarray:
        """The next copies, shape `(count, ...)`."""
        values = self._rng.standard_normal((count, *self._image.shape))
        values *= self._stddev
        values += self._image
        np.rint(values, out=values)
        values *= self._step
        return values.astype(self._dtype)


def _count(
    classifier: Classifier,
    noise: Noise,
    sizes: tuple[int, int],
    num_classes: int,
    batch_size: int,
    bar: Any,
) -> tuple[np.ndarray, np.ndarray]:
    """The votes for each class of the first noisy copies, and of those that follow them."""
    num_selection, total = sizes[0], sum(sizes)
    tallies = np.zeros((2, num_classes), int)
    for number, first in enumerate(range(0, total, batch_size)):
        places = np.arange(first, min(first + batch_size, total))
        noisy = _filled_up(classifier, noise.draw(len(places)), batch_size)
        # A random model draws other numbers in each batch.
        classes = classifier.scores(noisy, seed=number)[: len(places)].argmax(axis=1)
        np.add.at(tallies, ((places >= num_selection).astype(int), classes), 1)
        bar.add(1)
    return tallies[0], tallies[1]


def _filled_up(classifier: Classifier, noisy: np.ndarray, batch_size: int) -> np.ndarray:
    """A batch of the size that the model was compiled for."""
    missing = batch_size - len(noisy)
    if not missing or classifier.takes_any_batch_size:
        return noisy
    return np.concatenate([noisy, np.repeat(noisy[-1:], missing, axis=0)])


def _rounding(x: np.ndarray | Images, stddev: float) -> float:
    """By how much rounding may change the probability of any class."""
    largest = max(abs(float(x.min())), abs(float(x.max())))
    step = grid_step(stddev)
    if (largest + _LARGEST_NORMAL * stddev) / step >= _WHOLE_NUMBERS:
        raise ValueError(
            "Argument `stddev` is too small beside the values of the images: in float32 the noise "
            f"would be rounded off. Received: stddev={stddev:g}, and values of up to {largest:g}"
        )
    return x[0].size * 2.0**-51 * (largest + 64 * stddev) / step


def _check_model(classifier: Classifier) -> None:
    if classifier.depends_on_batch:
        raise ValueError(
            "A certificate counts independent votes, and this model's answer to an image depends "
            "on the others in its batch (`kr.layers.WNLLHead` with `joint=True`): make it "
            f"answer to each alone. Received: model={classifier.model!r}"
        )
    if isinstance(classifier.model, SmoothedClassifier):
        raise ValueError(
            "Argument `model` must be the model that is to be smoothed, not the smoothed one: pass "
            f"its attribute `model`. Received: model={classifier.model!r}"
        )
