"""Computes the outputs of a model's layers."""

import functools
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_robust import validation
from keras_robust.layers import TanhClassifier
from keras_robust.model.arrays import as_array
from keras_robust.model.batches import in_batches
from keras_robust.model.calls import LayerCall, noted_calls, parts
from keras_robust.model.checks import check_images
from keras_robust.model.classifier import Classifier
from keras_robust.types import Images, Model


def layer_calls(classifier: Classifier, x: Images) -> list[LayerCall]:
    """Runs a Keras model in inference mode and returns the calls of its layers, in order."""
    with noted_calls(classifier.model) as calls:
        classifier.outputs(x)
    return calls


def calls_of_one(classifier: Classifier, x: np.ndarray) -> list[LayerCall]:
    """Returns the layer calls of a run on one example, which give the names of the layers."""
    classifier.build(x)
    calls = layer_calls(classifier, ops.convert_to_tensor(x[:1]))
    if not calls:
        raise ValueError(
            "No layers were found in argument `model`. It must be a Keras model made of layers: "
            "functional, sequential, or subclassed with its layers as attributes. "
            f"Received: model={classifier.model!r}"
        )
    return calls


def check_layer(layer: str, names: list[str]) -> str:
    """Returns `layer` if the model has a layer of this name. Raises a `ValueError` otherwise."""
    if layer not in names:
        raise ValueError(
            f"The model calls no layer {layer!r}. Expected one of {names}. "
            f"Received: layer={layer!r}"
        )
    return layer


def features(
    model: Model, x: Images, layer: str | None = None, batch_size: int = 128
) -> np.ndarray:
    """Computes the output of a layer for each image.

    By default, it returns the input of the last layer with weights: the deep features between the
    network and its linear classifier, whether or not a softmax follows. For
    `kr.layers.TanhClassifier`, it returns the features after the layer's activation.

    Args:
        model: Keras model, or `kr.RobustModel` (its `base_model` is used).
        x: images, shape `(num_examples, ...)`.
        layer: string. Name of the layer whose output to return. A layer of a nested model is named
            by its path, such as `"encoder/conv2d"`. Defaults to `None`: the input of the last layer
            with weights.
        batch_size: int. Number of images per batch. Defaults to `128`.

    Returns:
        Float32 array, shape `(num_examples, ...)`.

    Raises:
        ValueError: if the model is not made of layers, or has no layer of this name. The message
            lists the names of its layers.

    Example:

    >>> import keras, numpy as np, keras_robust as kr
    >>> model = keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(5, name="hidden"),
    ...                           keras.layers.Dense(10)])
    >>> kr.evaluation.features(model, np.random.rand(32, 8, 8, 1), layer="hidden").shape
    (32, 5)

    Reference:

    - Wang et al., 2018, "Adversarial Defense via Data Dependent Activation Function and Total
      Variation Minimization", section 4.1.3: "the 64D features from the layer before the softmax"
    """
    classifier, x = Classifier.of(model), as_array(x)
    check_images(x)
    batch_size = min(validation.check_count("batch_size", batch_size), len(x))
    names = [call.name for call in calls_of_one(classifier, x)]
    if layer is not None:
        check_layer(layer, names)
    function = classifier.compiled(("features", layer), functools.partial(_features, layer=layer))
    return in_batches(lambda rows: function(x[rows]), len(x), batch_size)


def _features(classifier: Classifier, x: Images, layer: str | None) -> Any:
    calls = layer_calls(classifier, x)
    if layer is None:
        calls = parts(calls)
        with_weights = [call for call in calls if call.layer.weights]
        last = (with_weights or calls)[-1]
        is_tanh = isinstance(last.layer, TanhClassifier)
        value = last.layer.activate(last.inputs) if is_tanh else last.inputs
    else:
        value = next(call.outputs for call in calls if call.name == layer)
    return ops.cast(keras.tree.flatten(value)[0], "float32")
