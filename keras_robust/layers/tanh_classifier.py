"""Classification layer on bounded features, with an angular weight penalty."""

from typing import Any

import keras
from keras import ops

from keras_robust import validation
from keras_robust.regularizers import AngularPenalty
from keras_robust.types import Config, Shape, Tensor

_ACTIVATIONS = ("tanh", "relu", "prelu", "leaky_relu")


@keras.saving.register_keras_serializable(package="keras_robust")
class TanhClassifier(keras.layers.Layer):
    """Classifies bounded features with weight vectors that point as far apart as possible.

        f = tanh(h),  c = W f,  loss += alpha * ||W W^T - Sigma||

    Here h are the input features, and `Sigma` is the Gram matrix of a regular simplex of radius s.
    Without a bound, training can lower the loss by lengthening the feature vectors, which does not
    rotate them further from the decision boundary. Tanh prevents this. The penalty makes the K rows
    of W the vertices of the simplex.

    Args:
        num_classes: int. K, the number of classes.
        penalty: float. `alpha`, the weight of the penalty. Defaults to `100.0`.
        scale: float. `s`, the length of the weight vectors for which the penalty is 0. Defaults to
            `0.1`.
        activation: `"tanh"`, or for the paper's ablation `"relu"`, `"prelu"` (with a learned slope
            for each feature) or `"leaky_relu"`. Defaults to `"tanh"`.
        use_bias: bool. Whether to add a bias, which the paper's geometry does not include.
            Defaults to `False`.
        norm: `"frobenius"` or `"spectral"`, see `kr.regularizers.AngularPenalty`. Defaults to
            `"frobenius"`.
        kernel_initializer: Keras initializer of `W^T`. Defaults to `"glorot_uniform"`.
        **kwargs: Base layer keyword arguments (e.g. `name` and `dtype`).

    Call arguments:
        inputs: float tensor, shape `(batch_size, features)`.

    Returns:
        Logits, shape `(batch_size, num_classes)`.

    Raises:
        ValueError: if an argument is out of its range; when called, if the input is not of rank 2,
            or if `num_classes > features + 1`, which the paper's Theorem 1 excludes.

    Example:

    >>> import keras, keras_robust as kr
    >>> model = keras.Sequential([
    ...     keras.Input((28, 28, 1)),
    ...     keras.layers.Flatten(),
    ...     keras.layers.Dense(200),
    ...     kr.layers.TanhClassifier(10),
    ... ])
    >>> model.output_shape
    (None, 10)

    Once the penalty is 0, every logit is at most `s * sqrt(P)` for P features (with tanh and
    without a bias). With the paper's s = 0.1 the cross-entropy therefore stays well above 0. This
    is intended.

    Saturated tanh units hide gradients. Evaluate a model with this layer by `kr.attacks.PGD` with
    many steps and by attacks that need no gradient, never by FGSM alone.

    Reference:

    - Xu et al., Improve Adversarial Robustness via Weight Penalization on Classification Layer,
      section 3
    """

    def __init__(
        self,
        num_classes: int,
        penalty: float = 100.0,
        scale: float = 0.1,
        activation: str = "tanh",
        use_bias: bool = False,
        norm: str = "frobenius",
        kernel_initializer: Any = "glorot_uniform",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.num_classes = validation.check_count("num_classes", num_classes)
        if self.num_classes < 2:
            raise ValueError(
                f"Argument `num_classes` must be at least 2. Received: num_classes={num_classes}"
            )
        self.regularizer = AngularPenalty(penalty, scale, norm)
        self.activation = validation.check_choice("activation", activation, _ACTIVATIONS)
        self.use_bias = bool(use_bias)
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        is_prelu = self.activation == "prelu"
        self.activate = (
            keras.layers.PReLU(dtype=self.dtype_policy)
            if is_prelu
            else keras.activations.get(self.activation)
        )
        self.input_spec = keras.layers.InputSpec(ndim=2)

    def build(self, input_shape: Shape) -> None:
        features = input_shape[-1]
        if features is None or self.num_classes > features + 1:
            raise ValueError(
                "Argument `num_classes` must be at most one more than the number of features. "
                "Otherwise the weight vectors cannot all have the same obtuse angle to each other. "
                f"Received: num_classes={self.num_classes}, inputs of shape {tuple(input_shape)}"
            )
        if self.activation == "prelu":
            self.activate.build(input_shape)
        self.kernel = self.add_weight(
            name="kernel",
            shape=(features, self.num_classes),
            initializer=self.kernel_initializer,
            regularizer=self.regularizer,
        )
        if self.use_bias:
            self.bias = self.add_weight(name="bias", shape=(self.num_classes,), initializer="zeros")
        self.built = True

    def call(self, inputs: Tensor) -> Tensor:
        logits = ops.matmul(self.activate(inputs), self.kernel)
        return ops.add(logits, self.bias) if self.use_bias else logits

    def compute_output_shape(self, input_shape: Shape) -> tuple[Any, int]:
        return (input_shape[0], self.num_classes)

    def get_config(self) -> Config:
        return {
            **super().get_config(),
            "num_classes": self.num_classes,
            "penalty": self.regularizer.penalty,
            "scale": self.regularizer.scale,
            "activation": self.activation,
            "use_bias": self.use_bias,
            "norm": self.regularizer.norm,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
        }
