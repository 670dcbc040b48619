"""Projects the features of clean and attacked images to two dimensions."""

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
class FeatureGeometry:
    """Features of clean and attacked images, reduced to two dimensions.

    Args:
        clean: float array, shape `(num_examples, 2)`: the features of the clean images.
        attacked: float array, shape `(num_examples, 2)`: the features of the attacked images, on
            the same axes.
        labels: int array, shape `(num_examples,)`: the true classes.
        clean_classes: int array, shape `(num_examples,)`: the classes predicted for the clean
            images.
        attacked_classes: int array, shape `(num_examples,)`: the classes predicted for the attacked
            images.
        method: `"pca"` or `"tsne"`.
        explained_variance: float array, shape `(2,)`: for PCA, the share of the clean features'
            variance along each axis. `None` for t-SNE.
    """

    clean: np.ndarray
    attacked: np.ndarray
    labels: np.ndarray
    clean_classes: np.ndarray
    attacked_classes: np.ndarray
    method: str
    explained_variance: np.ndarray | None


def feature_geometry(
    model: Model,
    x: Images,
    y: Labels,
    x_adv: Images,
    *,
    method: str = "pca",
    layer: str | None = None,
    batch_size: int = 128,
) -> FeatureGeometry:
    """Reduces the features of clean and attacked images to two dimensions, for plotting.

    With `"pca"`, the axes are the first two principal components of the clean images' features. The
    features of the attacked images are projected to the same axes, which shows where the attack
    moves them. With `"tsne"`, the clean and attacked images are embedded together. A t-SNE plot
    shows which images are neighbours, but its distances and directions have no meaning. The
    embedding is initialized with principal components, not at random.

    Args:
        model: Keras model, or `kr.RobustModel` (its `base_model` is used).
        x: clean images, shape `(num_examples, ...)`, at least 4.
        y: integer or one-hot labels.
        x_adv: the same images, attacked. An attack returns images unchanged if it fails on them.
        method: `"pca"` or `"tsne"`. Defaults to `"pca"`.
        layer: string. Name of the layer whose output to use, as for `kr.evaluation.features`.
            Defaults to `None`: the input of the last layer with weights.
        batch_size: int. Number of images per batch. Defaults to `128`.

    Returns:
        `FeatureGeometry`, which `kr.evaluation.plot_geometry` draws.

    Raises:
        ImportError: if scikit-learn is not installed.
        ValueError: if an argument is not as described above, if the model is not made of layers,
            or if the features have fewer than two dimensions.

    Example:

    >>> import keras, numpy as np, keras_robust as kr
    >>> model = keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(10)])
    >>> x, y = np.random.rand(32, 8, 8, 1), np.random.randint(0, 10, 32)
    >>> x_adv = kr.attacks.FGSM(epsilon=0.1)(model, x, y)
    >>> kr.evaluation.feature_geometry(model, x, y, x_adv).attacked.shape
    (32, 2)

    Reference:

    - Wang et al., 2018, "Adversarial Defense via Data Dependent Activation Function and Total
      Variation Minimization", section 4.1.3 and Figure 5 (PCA). There, each panel seems to have its
      own axes. Here, clean and attacked images share the axes of the clean images.
    - Wang and Osher, 2019, "Graph Interpolating Activation Improves Both Natural and Robust
      Accuracies in Data-Efficient Deep Learning", Figures 8 and 9 (PCA)
    - Xu et al., 2020, "Improve Adversarial Robustness via Weight Penalization on Classification
      Layer", Figure 3 (t-SNE)
    """
    require_scikit_learn()
    validation.check_choice("method", method, ("pca", "tsne"))
    x, y, x_adv = (ops.convert_to_numpy(values) for values in (x, y, x_adv))
    if x.shape != x_adv.shape or len(x) != len(y) or len(x) < 4:
        raise ValueError(
            "Arguments `x`, `y` and `x_adv` must hold the same examples, at least 4. Received: "
            f"x.shape={x.shape}, y.shape={y.shape}, x_adv.shape={x_adv.shape}"
        )
    labels, classifier = sparse(y), Classifier.of(model)
    clean, attacked = (
        features(classifier, images, layer, batch_size).reshape(len(x), -1) for images in (x, x_adv)
    )
    if clean.shape[1] < 2:
        raise ValueError(
            "The features must have at least two dimensions. "
            f"Received: features of shape {clean.shape}"
        )
    batch_size = min(batch_size, len(x))
    clean_classes = classifier.classes(x, batch_size)
    attacked_classes = classifier.classes(x_adv, batch_size)
    explained = None
    if method == "pca":
        clean, attacked, explained = _principal_components(clean, attacked)
    else:
        clean, attacked = _embedding(clean, attacked)
    return FeatureGeometry(
        clean, attacked, labels, clean_classes, attacked_classes, method, explained
    )


def _principal_components(
    clean: np.ndarray, attacked: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    from sklearn.decomposition import PCA

    pca = PCA(2, svd_solver="full").fit(clean)
    return pca.transform(clean), pca.transform(attacked), pca.explained_variance_ratio_


def _embedding(clean: np.ndarray, attacked: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    from sklearn.manifold import TSNE

    both = np.concatenate([clean, attacked])
    perplexity = min(30.0, (len(both) - 1) / 3)
    points = TSNE(2, perplexity=perplexity, init="pca", random_state=0).fit_transform(both)
    return points[: len(clean)], points[len(clean) :]
