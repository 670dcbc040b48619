"""Classification by the nearest of fixed centres."""

from typing import Any

import keras
from keras import ops

from keras_robust import backend, validation
from keras_robust.ops.precision import working_dtype
from keras_robust.ops.simplex import simplex_vertices
from keras_robust.types import Config, Shape, Tensor


@keras.saving.register_keras_serializable(package="keras_robust")
class MaxMahalanobisClassifier(keras.layers.Layer):
    """Classifies features by the nearest of fixed centres that are as far apart as possible.

        logits_j = -||z - mu_j||^2,    ||mu_j|| = scale,    <mu_i, mu_j> = -scale^2 / (K - 1)

    Here z are the input features. The K centres `mu_j` are the vertices of a regular simplex,
    computed by the recursion of Pang et al. (2018). They are not trained, and depend only on
    `scale` and the numbers of classes and features. Train with `kr.losses.MaxMahalanobis`, alone or
    as the `loss` of `kr.losses.AdversarialTraining`.

    Args:
        num_classes: int. K, the number of classes.
        scale: float. The length of the centres, `C_MM` in the papers. Defaults to `10.0`.
        **kwargs: Base layer keyword arguments (e.g. `name` and `dtype`).

    Call arguments:
        inputs: float tensor, shape `(batch_size, features)`.

    Returns:
        Logits, shape `(batch_size, num_classes)`, in at least float32 whatever the layer's compute
        dtype.

    Raises:
        ValueError: if `num_classes` is less than 2, or `scale` is not positive; when called, if the
            input is not of rank 2, or if `num_classes > features + 1`, because then the centres
            cannot all have the same distance from each other.

    Example:

    >>> import keras, keras_robust as kr
    >>> model = keras.Sequential([
    ...     keras.Input((28, 28, 1)),
    ...     keras.layers.Flatten(),
    ...     keras.layers.Dense(200),
    ...     kr.layers.MaxMahalanobisClassifier(10),
    ... ])
    >>> model.output_shape
    (None, 10)

    Do not apply a ReLU to the features: they could then not reach a centre with negative
    coordinates.

    Reference:

    - [Pang et al., 2018](https://arxiv.org/abs/1802.09308), algorithm 1
    - [Pang et al., 2020](https://arxiv.org/abs/1905.10626), section 4
    """

    def __init__(self, num_classes: int, scale: float = 10.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.num_classes = validation.check_count("num_classes", num_classes)
        if self.num_classes < 2:
            raise ValueError(
                f"Argument `num_classes` must be at least 2. Received: num_classes={num_classes}"
            )
        self.scale = validation.check_number("scale", scale, exclusive=True)
        self.input_spec = keras.layers.InputSpec(ndim=2)

    def build(self, input_shape: Shape) -> None:
        features = input_shape[-1]
        if features is None or self.num_classes > features + 1:
            raise ValueError(
                "Argument `num_classes` must be at most one more than the number of features. "
                "Otherwise the centres cannot all have the same distance from each other. "
                f"Received: num_classes={self.num_classes}, inputs of shape {tuple(input_shape)}"
            )
        vertices = simplex_vertices(self.num_classes, features, self.scale)
        self.centers = self.add_weight(
            name="centers",
            shape=vertices.shape,
            initializer=lambda shape, dtype: ops.convert_to_tensor(vertices, dtype),
            trainable=False,
            autocast=False,
        )
        self.built = True

    def call(self, inputs: Tensor) -> Tensor:
        dtype = working_dtype(inputs.dtype)
        features, centers = ops.cast(inputs, dtype), ops.cast(self.centers, dtype)
        products = backend.matmul(features, ops.transpose(centers))
        return 2 * products - ops.sum(ops.square(features), axis=-1, keepdims=True) - self.scale**2

    def compute_output_shape(self, input_shape: Shape) -> tuple[Any, int]:
        return (input_shape[0], self.num_classes)

    def get_config(self) -> Config:
        return {**super().get_config(), "num_classes": self.num_classes, "scale": self.scale}
