"""Fills the template of a WNLL head from images."""

from typing import Any

import numpy as np

from keras_robust import validation
from keras_robust.layers.template import sparse_with_unlabeled
from keras_robust.layers.wnll_head import wnll_head
from keras_robust.model.arrays import as_arrays
from keras_robust.model.batches import in_batches
from keras_robust.model.checks import check_images
from keras_robust.model.classifier import Classifier
from keras_robust.model.patching import replaced
from keras_robust.types import Images, Labels, Model


def adapt_template(
    model: Model,
    x: Images,
    y: Labels = None,
    batch_size: int = 128,
    seed: int = 0,
    steps: int | None = None,
) -> None:
    """Fills the template of the model's WNLL head, and puts the head in its WNLL phase.

    The features of `x` are computed in inference mode. Call this function again whenever the
    network below the head has changed.

    Args:
        model: Keras model that ends with a `kr.layers.WNLLHead`, or a `kr.RobustModel` of one.
        x: images, shape `(num_examples, ...)`, or a data set of pairs of images and labels, as for
            `kr.evaluate`. If there are more examples than the template holds, a random subset is
            used.
        y: integer or one-hot labels; -1 marks an unlabeled example. Defaults to `None`, for a
            data set.
        batch_size: int. Defaults to `128`.
        seed: int. Seed of the random subset. Defaults to `0`.
        steps: int. How many batches of a data set to read. Defaults to `None`: all of them.

    Raises:
        ValueError: if the model does not end with a `WNLLHead`; if there are too few examples,
            or a class has none.

    Example:

    >>> import keras, numpy as np, keras_robust as kr
    >>> x, y = np.random.rand(200, 8, 8, 1).astype("float32"), np.arange(200) % 10
    >>> model = keras.Sequential([
    ...     keras.Input((8, 8, 1)), keras.layers.Flatten(), kr.layers.WNLLHead(
    ...         10, template_size=100)])
    >>> kr.training.adapt_template(model, x, y)
    """
    head = wnll_head(model)
    x, y = as_arrays(x, y, steps)
    check_images(x)
    labels = sparse_with_unlabeled(y, head.num_classes)
    if len(labels) != len(x):
        raise ValueError(
            "Arguments `x` and `y` must have the same number of examples. "
            f"Received: {len(x)} in x, {len(labels)} in y"
        )
    head.template.check_labels(labels)
    # Features are computed only for the chosen rows. `adapt` then uses all of them.
    rows = head.template.chosen(labels, seed)
    head.adapt(head_inputs(model, x[rows], batch_size), labels[rows], seed)


def head_inputs(model: Model, x: np.ndarray, batch_size: int = 128) -> np.ndarray:
    """Returns the head's inputs for each image, in inference mode."""
    classifier = Classifier.of(model)
    classifier.build(x)
    function = classifier.compiled("head inputs", _head_inputs)
    batch_size = min(validation.check_count("batch_size", batch_size), len(x))
    return in_batches(lambda rows: function(x[rows]), len(x), batch_size)


def _head_inputs(classifier: Classifier, x: Images) -> Any:
    head = wnll_head(classifier.model)
    with replaced(head, "call", lambda inputs, training=None: inputs):
        return classifier.outputs(x)
