"""Certifies robustness by randomized smoothing."""

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
from keras_robust.model.arrays import as_images
from keras_robust.model.batches import padded
from keras_robust.model.checks import sparse
from keras_robust.model.classifier import Classifier
from keras_robust.model.images import LazyImages
from keras_robust.model.smoothed import SmoothedClassifier, grid_step
from keras_robust.types import Images, Labels, Model, Seed

# NumPy never draws a normal number as large as this.
_LARGEST_NORMAL = 16.0
# Up to here, float32 represents every integer.
_WHOLE_NUMBERS = 2.0**24


def certify(
    model: Model,
    x: Images,
    y: Labels = None,
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
    """Certifies the L2 radius within which a smoothed classifier keeps its prediction.

        g(x) = argmax_c P(f(x + n) = c),    n ~ N(0, stddev^2)
        p    = a lower bound of P(f(x + n) = c_A)
        R    = stddev * Phi^-1(p):    g(x + d) = c_A wherever norm(d) < R

    A failed attack proves nothing. A certificate does: `g` predicts the class `c_A` in the whole
    ball, whatever the attack. It is wrong with a probability of at most `alpha` per example,
    because the votes are sampled. The certificate holds for the smoothed classifier `g`, which
    takes a vote of the model `f` over noisy copies of the image. It does not hold for `f` itself.

    The class `c_A` is the most frequent prediction on `num_selection` noisy copies. Then
    `num_samples` other copies vote, and `p` is the exact lower bound of Clopper and Pearson on the
    probability of `c_A`. If `p` is not above 1/2, the classifier abstains.

    Certification is useful for a network that was trained on the same noise: start it with
    `keras.layers.GaussianNoise(stddev)`, which is inactive in inference. Noisy copies are not
    clipped, so the model must accept values outside the range of the images.

    The noise of an example depends only on `seed` and on the example's position. It is the same on
    every backend and for every batch size. Only one batch of noisy copies is in memory at a time.

    Args:
        model: Keras model, `kr.RobustModel`, `kr.BlackBox`, or a callable `x -> outputs`. It is run
            in inference mode. The predicted class is the one with the highest output.
        x: images, shape `(num_examples, ...)`, or a data set of (image, label) pairs, as for
            `kr.evaluate`.
        y: integer or one-hot labels. Omit it if `x` is a data set. Defaults to `None`.
        stddev: float. Standard deviation of the noise, in units of `x`. Required. Defaults to
            `None`, which raises a `ValueError`.
        num_samples: int. Number of noisy copies of each example that vote. If all votes agree, the
            radius is `stddev * Phi^-1(alpha^(1 / num_samples))`: 3.8 times `stddev` for the
            default, 2.5 times for 1,000. Defaults to `100000`.
        num_selection: int. Number of further noisy copies that select the class. Defaults to `100`.
        alpha: float, more than 0 and at most 0.5. The largest probability that the certificate of
            an example is wrong. Defaults to `0.001`.
        batch_size: int. Number of noisy copies per batch. Defaults to `128`.
        output: path of a folder to save `certificate.json` in, which is created if it does not
            exist. The counts of each example are saved as soon as they are known, so an
            interruption loses at most one example. A certificate that is already in the folder is
            deleted. Defaults to `None`: nothing is saved.
        seed: int. Random seed of the noise. Defaults to `0`.
        resume: bool. Whether to continue an interrupted certification in `output`, if there is one.
            Defaults to `False`.
        steps: int. Number of batches to read from a data set. Defaults to `None`: all of them.
        verbose: int. 1 shows a progress bar, 0 shows nothing. Defaults to `1`.

    Returns:
        `kr.evaluation.Certificate`: the class and radius of each example, the abstentions,
        `certified_accuracy(radius)` and its `curve()`. `kr.evaluate(..., certificate=...)` shows it
        beside attacks on the `kr.evaluation.SmoothedClassifier`.

    Raises:
        ValueError: before any work, if an argument is not as described above, if `stddev` is too
            small for float32 compared with the values of `x`, or if the model's prediction for an
            image depends on other images in its batch; if `resume` is true without an `output`, or
            the certification in `output` was started with a different model, images or arguments.
        ImportError: if SciPy is not installed.

    Example:

    >>> import keras, numpy as np, keras_robust as kr
    >>> model = keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(10)])
    >>> x = np.random.rand(4, 8, 8, 1).astype("float32")
    >>> y = np.argmax(model(x), axis=1)
    >>> certificate = kr.evaluation.certify(model, x, y, stddev=0.01, num_samples=1000, verbose=0)
    >>> certificate.certified_accuracy(0.0) >= certificate.certified_accuracy(0.02)
    True

    Floating point: Voracek and Hein (2023) show that certificates can be wrong if the noise is
    added in floating point. The last bits of `x + n` reveal `x`, and a model can react to them.
    Therefore, `x + n` is computed in float64 and rounded to a grid. The step `s` of the grid is a
    power of 2 between `stddev / 512` and `stddev / 256`. The model receives only multiples of `s`,
    which are exact in float32. Rounding followed by the model is a classifier of real numbers, so
    the theorem applies to it.

    In contrast to that paper, the images need not lie on the grid, and the noise is not drawn bit
    by bit. NumPy's normal numbers and the sum have errors of a few units of the 53rd bit. They
    change the probability of a class by at most

        delta = num_values * 2^-51 * (max |x| + 64 stddev) / s

    (6e-9 for MNIST). The radius is computed from `p - delta` and `1/2 + delta`.

    The certificate assumes that pseudo-random numbers are as good as the true random numbers of the
    proof, that SciPy's quantiles are exact, and that the model is a function of each image alone,
    including its rounding: the same image at another position in a batch must get the same class.

    Reference:

    - [Cohen et al., 2019](https://arxiv.org/abs/1902.02918), section 3.2
    - [Voracek & Hein, 2023](https://arxiv.org/abs/2207.07209)
    """
    if stddev is None:
        raise ValueError(
            "Argument `stddev` must be given. It is the standard deviation of the noise, in units "
            "of the images. Received: stddev=None"
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
    facts = fingerprint_of_votes(
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


def fingerprint_of_votes(
    classifier: Classifier, x: np.ndarray | LazyImages, labels: np.ndarray, **settings: Any
) -> dict[str, str]:
    """Returns the fingerprint of everything that the votes depend on."""
    is_keras = classifier.is_keras
    classes = labels if is_keras else classifier.classes(x, min(len(x), 128))
    return fingerprint(classifier.model, x, labels, classes, {}, **settings)


class Noise:
    """Draws noisy copies of an image, rounded to a grid that is exact in float32.

    The sequence of copies does not depend on how many are drawn at once.

    Args:
        image: array.
        stddev: float. Standard deviation of the noise.
        seed: seed of NumPy's random number generator.
    """

    def __init__(self, image: np.ndarray, stddev: float, seed: Seed) -> None:
        self._step = grid_step(stddev)
        # The step is a power of 2, so these quotients are exact.
        self._image, self._stddev = image.astype("float64") / self._step, stddev / self._step
        self._dtype = "float64" if image.dtype == "float64" else "float32"
        self._rng = np.random.default_rng(seed)

    def draw(self, count: int) -> np.ndarray:
        """Returns the next noisy copies, shape `(count, ...)`."""
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
    """Counts the votes for each class, separately for the selection and for the vote itself."""
    num_selection, total = sizes[0], sum(sizes)
    tallies = np.zeros((2, num_classes), int)
    for number, first in enumerate(range(0, total, batch_size)):
        places = np.arange(first, min(first + batch_size, total))
        noisy = noise.draw(len(places))
        if not classifier.takes_any_batch_size:
            noisy = padded(noisy, batch_size)
        # The seed makes a random model draw different numbers in each batch.
        classes = classifier.scores(noisy, seed=number)[: len(places)].argmax(axis=1)
        np.add.at(tallies, ((places >= num_selection).astype(int), classes), 1)
        bar.add(1)
    return tallies[0], tallies[1]


def _rounding(x: np.ndarray | LazyImages, stddev: float) -> float:
    """Returns the largest change of a class probability by rounding."""
    largest = max(abs(float(x.min())), abs(float(x.max())))
    step = grid_step(stddev)
    if (largest + _LARGEST_NORMAL * stddev) / step >= _WHOLE_NUMBERS:
        raise ValueError(
            "Argument `stddev` is too small compared with the values of the images: float32 would "
            f"round off the noise. Received: stddev={stddev:g}, and values of up to {largest:g}"
        )
    return x[0].size * 2.0**-51 * (largest + 64 * stddev) / step


def _check_model(classifier: Classifier) -> None:
    if classifier.depends_on_batch:
        raise ValueError(
            "A certificate needs independent votes, but the model's prediction for an image "
            "depends on the other images in its batch (`kr.layers.WNLLHead` with `joint=True`). "
            f"Make it predict each image alone. Received: model={classifier.model!r}"
        )
    if isinstance(classifier.model, SmoothedClassifier):
        raise ValueError(
            "Argument `model` must be the base model, not the smoothed classifier: pass its "
            f"attribute `model`. Received: model={classifier.model!r}"
        )
