"""Measures how much a perturbation of the image changes the output of each layer."""

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_robust import validation
from keras_robust.metrics.activations import calls_of_one, check_layer, layer_calls
from keras_robust.model.arrays import as_array
from keras_robust.model.batches import in_batches
from keras_robust.model.checks import check_images
from keras_robust.model.classifier import Classifier
from keras_robust.types import Images, Model


def perturbation_error(
    model: Model,
    x: Images,
    x_adv: Images,
    *,
    layers: Sequence[str] | str | None = None,
    batch_size: int = 128,
) -> dict[str, float]:
    """Computes the relative change of each layer's output under a perturbation of the images.

        mean over x of |s_i(x) - s_i(x_a)| / |s_i(x)|

    `s_i` is the output of layer i, and `|.|` the sum of absolute values over the outputs for one
    image. If all outputs `s_i(x)` of an image are 0, its ratio is 0 if all outputs `s_i(x_a)` are
    also 0, and infinite otherwise.

    Args:
        model: Keras model, or `kr.RobustModel` (its `base_model` is used).
        x: images, shape `(num_examples, ...)`.
        x_adv: the same images, perturbed.
        layers: names of the layers to include, or a single name. A layer of a nested model is named
            by its path, such as `"encoder/conv2d"`. Defaults to `None`: all layers, without the
            layers that are made of other layers.
        batch_size: int. Number of images per batch. Defaults to `128`.

    Returns:
        Mapping of layer names to errors, in the order in which the model calls the layers, or in
        the order of `layers`.

    Raises:
        ValueError: if `x` and `x_adv` have different shapes or are not finite, if the model is not
            made of layers, or if it has no layer of a name in `layers`.

    Example:

    >>> import keras, numpy as np, keras_robust as kr
    >>> model = keras.Sequential([keras.layers.Rescaling(2.0, name="doubled"),
    ...                           keras.layers.Flatten(name="flat")])
    >>> x = np.full((4, 8, 8, 1), 0.5)
    >>> errors = kr.evaluation.perturbation_error(model, x, x + 0.05)
    >>> {name: round(error, 3) for name, error in errors.items()}
    {'doubled': 0.1, 'flat': 0.1}

    Reference:

    - Schwartz and Ditzler, 2020, "Bolstering Adversarial Robustness with Latent Disparity
      Regularization", Figure 6, which shows only the hidden convolutions (select them with
      `layers`)
    """
    classifier, x, x_adv = Classifier.of(model), as_array(x), as_array(x_adv, "x_adv")
    for images in (x, x_adv):
        check_images(images)
    if x.shape != x_adv.shape:
        raise ValueError(
            "Arguments `x` and `x_adv` must have the same shape. "
            f"Received: x.shape={x.shape}, x_adv.shape={x_adv.shape}"
        )
    batch_size = min(validation.check_count("batch_size", batch_size), len(x))
    calls = calls_of_one(classifier, x)
    names = [call.name for call in calls]
    chosen = [call.name for call in calls if not call.is_whole]
    if layers is not None:
        chosen = [check_layer(layer, names) for layer in validation.as_list(layers)]
    function = classifier.compiled("perturbation_error", _errors)
    found = in_batches(
        lambda rows: ops.stack(function(x[rows], x_adv[rows]), axis=1), len(x), batch_size
    )
    means = found.astype("float64").mean(axis=0)
    errors = dict(zip(names, means.tolist(), strict=True))
    return {name: errors[name] for name in chosen}


def _errors(classifier: Classifier, x: Images, x_adv: Images) -> list[Any]:
    """Returns the error of each example for each layer call."""
    pairs = zip(layer_calls(classifier, x), layer_calls(classifier, x_adv), strict=True)
    return [_ratio(clean.outputs, perturbed.outputs) for clean, perturbed in pairs]


def _ratio(clean: Images, perturbed: Images) -> Any:
    clean = [ops.cast(value, "float32") for value in keras.tree.flatten(clean)]
    perturbed = [ops.cast(value, "float32") for value in keras.tree.flatten(perturbed)]
    change = _total([ops.subtract(a, b) for a, b in zip(clean, perturbed, strict=True)])
    intensity = _total(clean)
    infinite = ops.full_like(change, float("inf"))
    safe = ops.where(intensity > 0, intensity, ops.ones_like(intensity))
    ratio = ops.where(intensity > 0, change / safe, infinite)
    return ops.where(change > 0, ratio, ops.zeros_like(change))


def _total(values: list[Any]) -> Any:
    """Returns the sum of absolute values for each example."""
    sums = [
        ops.sum(ops.reshape(ops.abs(value), (ops.shape(value)[0], -1)), axis=1) for value in values
    ]
    return sum(sums[1:], sums[0])
