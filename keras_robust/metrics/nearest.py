"""Finds the training images that are nearest to an image in feature space."""

import dataclasses

import numpy as np
from keras import ops

from keras_robust import validation
from keras_robust.metrics.activations import features
from keras_robust.metrics.analysis import require_scikit_learn
from keras_robust.model.checks import sparse
from keras_robust.model.classifier import Classifier
from keras_robust.types import Images, Labels, Model


@dataclasses.dataclass(frozen=True)
class NearestImages:
    """The training images nearest to some images in feature space, nearest first.

    Args:
        queries: the images whose neighbours were searched, shape `(num_examples, ...)`.
        classes: int array, shape `(num_examples,)`: the classes predicted for the queries.
        images: training images, shape `(num_examples, k, ...)`.
        labels: int array, shape `(num_examples, k)`: the true classes of the training images.
        distances: float array, shape `(num_examples, k)`: Euclidean distances between features.
        indices: int array, shape `(num_examples, k)`: indices in the training set.
    """

    queries: np.ndarray
    classes: np.ndarray
    images: np.ndarray
    labels: np.ndarray
    distances: np.ndarray
    indices: np.ndarray


def nearest_images(
    model: Model,
    x_adv: Images,
    x_train: Images,
    y_train: Labels,
    *,
    k: int = 5,
    layer: str | None = None,
    batch_size: int = 128,
) -> NearestImages:
    """Finds the training images whose features are nearest to the features of attacked images.

    If the neighbours belong to the true class of an attacked image although the model is fooled,
    the features are sound, and the classifier on top of them is not.

    Args:
        model: Keras model, or `kr.RobustModel` (its `base_model` is used).
        x_adv: attacked images (or any other images), shape `(num_examples, ...)`.
        x_train: training images, shape `(num_training_examples, ...)`.
        y_train: integer or one-hot labels of the training images.
        k: int. Number of neighbours to find for each image. Defaults to `5`.
        layer: string. Name of the layer whose output to compare, as for `kr.evaluation.features`.
            Defaults to `None`: the input of the last layer with weights.
        batch_size: int. Number of images per batch. Defaults to `128`.

    Returns:
        `NearestImages`, which `kr.evaluation.plot_nearest_images` draws.

    Raises:
        ImportError: if scikit-learn is not installed.
        ValueError: if an argument is not as described above, if `k` is larger than the training
            set, or if the model is not made of layers.

    Example:

    >>> import keras, numpy as np, keras_robust as kr
    >>> model = keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(10)])
    >>> x, y = np.random.rand(32, 8, 8, 1), np.random.randint(0, 10, 32)
    >>> nearest = kr.evaluation.nearest_images(model, x[:2] + 0.001, x, y, k=3)
    >>> nearest.indices[:, 0].tolist()
    [0, 1]

    Reference:

    - Wang and Osher, 2019, "Graph Interpolating Activation Improves Both Natural and Robust
      Accuracies in Data-Efficient Deep Learning", section 5.2 and Figure 10 (5 nearest)
    """
    require_scikit_learn()
    from sklearn.neighbors import NearestNeighbors

    x_adv, x_train, y_train = map(ops.convert_to_numpy, (x_adv, x_train, y_train))
    validation.check_count("k", k)
    if x_adv.shape[1:] != x_train.shape[1:] or len(x_train) != len(y_train) or k > len(x_train):
        raise ValueError(
            "Arguments `x_adv` and `x_train` must hold images of the same shape. `x_train` and "
            "`y_train` must hold the same examples, at least `k` of them. Received: "
            f"x_adv.shape={x_adv.shape}, x_train.shape={x_train.shape}, "
            f"y_train.shape={y_train.shape}, k={k}"
        )
    labels, classifier = sparse(y_train), Classifier.of(model)
    queries, points = (
        features(classifier, images, layer, batch_size).reshape(len(images), -1)
        for images in (x_adv, x_train)
    )
    # In this many dimensions, a tree is no faster.
    index = NearestNeighbors(n_neighbors=k, algorithm="brute").fit(points)
    distances, indices = index.kneighbors(queries)
    return NearestImages(
        queries=x_adv,
        classes=classifier.classes(x_adv, min(batch_size, len(x_adv))),
        images=x_train[indices],
        labels=labels[indices],
        distances=distances,
        indices=indices,
    )
