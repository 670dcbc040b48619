"""Angular penalty on the weights of a classification layer."""

import keras
from keras import ops

from keras_robust import backend, validation
from keras_robust.ops.precision import working_dtype
from keras_robust.ops.simplex import simplex_gram
from keras_robust.types import Config, Tensor


def _frobenius_norm(matrix: Tensor) -> Tensor:
    """Returns `sqrt(sum M_ij^2)`, with gradient 0 at `M = 0`."""
    total = ops.sum(ops.square(matrix))
    positive = total > 0
    return ops.where(positive, ops.sqrt(ops.where(positive, total, 1.0)), 0.0)


def _spectral_norm(matrix: Tensor) -> Tensor:
    """Returns the largest absolute eigenvalue of a symmetric matrix.

    It equals `|v^T M v|` for the unit eigenvector v of that eigenvalue. With v held constant, the
    gradient with respect to M is `+-v v^T`. This is a subgradient where eigenvalues coincide and v
    has no gradient.
    """
    eigenvalues, eigenvectors = ops.eigh(ops.stop_gradient(matrix))
    index = ops.argmax(ops.abs(eigenvalues))
    vector = ops.stop_gradient(ops.take(eigenvectors, index, axis=1))[:, None]
    return ops.abs(ops.sum(vector * backend.matmul(matrix, vector)))


_NORMS = {"frobenius": _frobenius_norm, "spectral": _spectral_norm}


@keras.saving.register_keras_serializable(package="keras_robust")
class AngularPenalty(keras.regularizers.Regularizer):
    """Pulls the weight vectors of a classification layer towards the vertices of a regular simplex.

        alpha * ||W W^T - Sigma||,  Sigma_ij = s^2 if i = j else s^2 / (1 - K)

    The rows of W are the weight vectors of the K classes. The penalty is 0 where all weight vectors
    have length s and every pair has the largest angle that K vectors can have (Theorem 1, which
    requires K to be at most one more than the number of features).

    Args:
        penalty: float. The weight `alpha` of the penalty. Defaults to `100.0`.
        scale: float. `s`, the target length of the weight vectors. Defaults to `0.1`.
        norm: `"frobenius"` (not squared) as in the authors' code, or `"spectral"` (the largest
            singular value), the literal reading of equation 3.8. Defaults to `"frobenius"`.

    Call arguments:
        kernel: tensor, shape `(features, num_classes)`: the kernel of a `keras.layers.Dense`,
            which is `W^T`.

    Returns:
        Scalar tensor, in float32 or higher precision.

    Raises:
        ValueError: if `penalty` is negative or `scale` not positive; if `norm` is unknown; when
            called, if `kernel` is not a matrix, or its number of classes is less than 2 or more
            than `features + 1`.

    Example:

    >>> import keras, keras_robust as kr
    >>> layer = keras.layers.Dense(10, use_bias=False,
    ...                            kernel_regularizer=kr.regularizers.AngularPenalty())

    Reference:

    - Xu et al., Improve Adversarial Robustness via Weight Penalization on Classification Layer,
      eq. 3.7 and 3.8
    """

    def __init__(self, penalty: float = 100.0, scale: float = 0.1, norm: str = "frobenius") -> None:
        self.penalty = validation.check_number("penalty", penalty)
        self.scale = validation.check_number("scale", scale, exclusive=True)
        self.norm = validation.check_choice("norm", norm, _NORMS)

    def __call__(self, kernel: Tensor) -> Tensor:
        if len(kernel.shape) != 2 or not 2 <= kernel.shape[1] <= kernel.shape[0] + 1:
            raise ValueError(
                "An angular penalty needs a kernel of shape `(features, num_classes)` with at "
                "least 2 classes and at most `features + 1`, because more vectors cannot have "
                f"pairwise equal obtuse angles. Received: kernel of shape {tuple(kernel.shape)}"
            )
        kernel = ops.convert_to_tensor(kernel)
        kernel = ops.cast(kernel, working_dtype(kernel.dtype))
        gram = simplex_gram(kernel.shape[1], self.scale)
        deviation = backend.matmul(ops.transpose(kernel), kernel) - ops.cast(gram, kernel.dtype)
        return self.penalty * _NORMS[self.norm](deviation)

    def get_config(self) -> Config:
        return {"penalty": self.penalty, "scale": self.scale, "norm": self.norm}
