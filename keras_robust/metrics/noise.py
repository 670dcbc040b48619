"""Accuracy on images with Gaussian noise."""

import dataclasses
from collections.abc import Sequence

import keras
import numpy as np

from keras_robust import validation
from keras_robust.model.arrays import as_arrays
from keras_robust.model.checks import sparse
from keras_robust.model.classifier import Classifier
from keras_robust.types import Images, Labels, Model


@dataclasses.dataclass(frozen=True)
class NoiseAccuracy:
    """Accuracies under noise of a single strength.

    Args:
        accuracies: float array, shape `(num_draws,)`: the accuracy for each draw of the noise.
    """

    accuracies: np.ndarray

    @property
    def mean(self) -> float:
        return float(self.accuracies.mean())

    @property
    def std(self) -> float:
        """Standard deviation over the draws. It does not include the error of having few images."""
        return float(self.accuracies.std(ddof=1))


def noise_accuracy(
    model: Model,
    x: Images,
    y: Labels = None,
    *,
    stddevs: Sequence[float] | float,
    num_draws: int = 10,
    bounds: tuple[float, float] | None = None,
    batch_size: int = 128,
    seed: int = 0,
    steps: int | None = None,
    verbose: int = 1,
) -> dict[float, NoiseAccuracy]:
    """Computes the accuracy under Gaussian noise of several strengths.

    It is the share of images with `argmax_j z_j(x + n) = y`, where `n ~ N(0, sigma^2)` for each
    value of each image. Within a draw, all strengths use the same noise, scaled by `sigma`, so they
    are compared on equal terms. NumPy draws the noise, so it is the same on every backend.

    Args:
        model: Keras model, or a callable `x -> logits` (or probabilities).
        x: images, shape `(num_examples, ...)`, or a data set of (image, label) pairs, as for
            `kr.evaluate`.
        y: integer or one-hot labels. Omit it if `x` is a data set. Defaults to `None`.
        stddevs: the strengths `sigma`, in units of `x`, or a single strength.
        num_draws: int, at least 2. Number of times that the noise is drawn. Defaults to `10`.
        bounds: pair of floats to which the noisy images are clipped, such as `(0.0, 1.0)` for
            images that can be stored. Defaults to `None`: they are not clipped. Schwartz and
            Ditzler (2020) mention no clipping.
        batch_size: int. Number of images per batch. Defaults to `128`.
        seed: int. Random seed of the noise. Defaults to `0`.
        steps: int. Number of batches to read from a data set. Defaults to `None`: all of them.
        verbose: int. 1 shows a progress bar, 0 shows nothing. Defaults to `1`.

    Returns:
        Mapping of the strengths, ascending, to `NoiseAccuracy`: `mean` and `std` over the draws,
        and the `accuracies` of the draws.

    Raises:
        ValueError: if an argument is not as described above, or if the model's outputs are not
            finite or do not match the labels.

    Example:

    >>> import keras, numpy as np, keras_robust as kr
    >>> model = keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(10)])
    >>> x, y = np.random.rand(32, 8, 8, 1), np.random.randint(0, 10, 32)
    >>> noisy = kr.evaluation.noise_accuracy(model, x, y, stddevs=[0.0, 0.1], verbose=0)
    >>> noisy[0.0].std
    0.0

    Robustness to noise is not robustness to attacks: an adversarial perturbation many times smaller
    may still fool the model.

    Reference:

    - Schwartz and Ditzler, 2020, "Bolstering Adversarial Robustness with Latent Disparity
      Regularization", Figure 3
    """
    strengths = validation.check_several("stddevs", stddevs, validation.check_number)
    if validation.check_count("num_draws", num_draws) < 2:
        raise ValueError(
            "Argument `num_draws` must be at least 2, to estimate a standard deviation. "
            f"Received: num_draws={num_draws}"
        )
    if bounds is not None:
        bounds = validation.check_bounds(bounds)
    classifier = Classifier.of(model)
    x, y = as_arrays(x, y, steps)
    batch_size = min(validation.check_count("batch_size", batch_size), len(x))
    classifier.check(x, y, (bounds, None))

    labels = sparse(y)
    accuracies = np.empty((len(strengths), num_draws))
    bar = keras.utils.Progbar(accuracies.size, verbose=verbose)
    for draw in range(num_draws):
        noise = np.random.default_rng([seed, draw]).standard_normal(x.shape, "float32")
        for row, stddev in enumerate(strengths):
            noisy = (x + stddev * noise).astype(x.dtype)
            if bounds is not None:
                noisy = np.clip(noisy, *bounds)
            classes = classifier.classes(noisy, batch_size)
            accuracies[row, draw] = (classes == labels).mean()
            bar.add(1)
    return dict(zip(strengths, map(NoiseAccuracy, accuracies), strict=True))
