"""Measures how adversarial examples of one model transfer to other models."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from keras_robust import validation
from keras_robust.attacks import Attack
from keras_robust.metrics.perturbed import perturbed_images
from keras_robust.metrics.radii import check_attack
from keras_robust.model.arrays import as_arrays
from keras_robust.model.checks import sparse
from keras_robust.model.classifier import Classifier
from keras_robust.text_table import text_table
from keras_robust.types import Images, Labels


@dataclasses.dataclass(frozen=True)
class TransferMatrix:
    """Accuracies on the adversarial examples of other models.

    `kr.evaluation.transfer_matrix` makes it.

    Args:
        clean: mapping of model names to their accuracies on clean images.
        accuracy: nested mapping: `accuracy[source][target]` is the accuracy of the model `target`
            on the adversarial examples made on the model `source`.
        num_examples: int, the number of examples.
    """

    clean: dict[str, float]
    accuracy: dict[str, dict[str, float]]
    num_examples: int

    def to_dict(self) -> dict[str, Any]:
        """Returns all values in a form that can be written as JSON."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        rows = {"clean images": self.clean}
        rows |= {f"made on {source}": row for source, row in self.accuracy.items()}
        cells = [
            (name, *(f"{row[target]:.1%}" for target in self.clean)) for name, row in rows.items()
        ]
        return text_table(["", *self.clean], cells)


def transfer_matrix(
    models: Mapping[str, Any],
    x: Images,
    y: Labels = None,
    *,
    attack: Attack | Mapping[str, Attack],
    batch_size: int = 128,
    seed: int = 0,
    steps: int | None = None,
    verbose: int = 1,
) -> TransferMatrix:
    """Makes adversarial examples on each model and evaluates all models on them.

    A model that is fooled more often by the adversarial examples of another model than by its own
    has a gradient that misleads attacks. Its accuracy on its own adversarial examples says little.

    As in Wang et al. (2018), all images are perturbed and counted. This includes images on which
    the attack fails (their strongest perturbation counts) and images that a model misclassifies
    without an attack. The diagonal may therefore differ slightly from
    `kr.evaluation.robust_accuracy`, which counts only images that are also classified correctly
    before the attack.

    Args:
        models: mapping of names to Keras models, or callables `x -> logits`.
        x: images, shape `(num_examples, ...)`, or a data set of (image, label) pairs, as for
            `kr.evaluate`.
        y: integer or one-hot labels. Omit it if `x` is a data set. Defaults to `None`.
        attack: `kr.attacks.Attack`, untargeted, or a mapping with one attack for each name in
            `models`. A mapping is needed if, for example, some models return logits and others
            probabilities: each attack then has its own `from_logits`.
        batch_size: int. Number of images per batch. Defaults to `128`.
        seed: int. Random seed of the attack. Defaults to `0`.
        steps: int. Number of batches to read from a data set. Defaults to `None`: all of them.
        verbose: int. 1 shows a progress bar, 0 shows nothing. Defaults to `1`.

    Returns:
        `TransferMatrix` with `accuracy[source][target]` and the `clean` accuracies. As a string, it
        is a table. `kr.evaluation.plot_transfer_matrix` draws it.

    Raises:
        ValueError: for the same reasons as an attack itself; if an attack is targeted; if
            `models` is empty; or if `attack` has other names than `models`.

    Example:

    >>> import keras, numpy as np, keras_robust as kr
    >>> models = {name: keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(10)])
    ...           for name in ("first", "second")}
    >>> x, y = np.random.rand(32, 8, 8, 1), np.random.randint(0, 10, 32)
    >>> matrix = kr.evaluation.transfer_matrix(models, x, y, attack=kr.attacks.FGSM(epsilon=0.5),
    ...                                        verbose=0)
    >>> matrix.accuracy["first"]["first"]
    0.0

    The adversarial examples of a minimum-norm attack (DeepFool, C&W without `confidence`) lie on
    the decision boundary of their source model and rarely fool another model.

    Reference:

    - Wang et al., 2018, "Adversarial Defense via Data Dependent Activation Function and Total
      Variation Minimization", section 4.1.1, Tables 2 and 3 ("mutual classification accuracy")
    """
    if not isinstance(models, Mapping) or not models:
        raise ValueError(
            "Argument `models` must be a mapping of names to models, with at least one. "
            f"Received: models={models!r}"
        )
    attacks = attack if isinstance(attack, Mapping) else dict.fromkeys(models, attack)
    if set(attacks) != set(models):
        raise ValueError(
            "A mapping passed as `attack` must have the same names as `models`. "
            f"Received: {sorted(attacks)} for {sorted(models)}"
        )
    x, y = as_arrays(x, y, steps)
    classifiers = {name: Classifier.of(model) for name, model in models.items()}
    for name, classifier in classifiers.items():
        check_attack(attacks[name]).check(classifier, x, y)
    batch_size = min(validation.check_count("batch_size", batch_size), len(x))
    labels = sparse(y)

    def accuracies(images: np.ndarray) -> dict[str, float]:
        return {
            name: float((classifier.classes(images, batch_size) == labels).mean())
            for name, classifier in classifiers.items()
        }

    matrix = TransferMatrix(accuracies(x), {}, len(x))
    bar = keras.utils.Progbar(len(models) * -(-len(x) // batch_size), verbose=verbose)
    for name, classifier in classifiers.items():
        x_adv = perturbed_images(
            classifier, x, labels, attacks[name], batch_size, seed, progress=lambda: bar.add(1)
        )
        matrix.accuracy[name] = accuracies(x_adv)
    return matrix
