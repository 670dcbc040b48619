"""The constraint of Parseval networks."""

import math

import keras
from keras import ops

from keras_robust import backend, validation
from keras_robust.ops.precision import working_dtype
from keras_robust.types import Config, Tensor


@keras.saving.register_keras_serializable(package="keras_robust")
class ParsevalTightness(keras.constraints.Constraint):
    """Pulls a layer's weight matrix towards a Parseval tight frame after each update.

        W_S <- (1 + beta) W_S - beta W_S W_S^T W_S

    S is a random share of the rows of W, which has one row for each output unit. The update is one
    gradient step on `beta / 4 ||W_S W_S^T - I||^2`. It maps a singular value s to
    `(1 + beta) s - beta s^3`, so that over many steps s approaches 1 (if it starts below
    `sqrt(1 + 2 / beta)`). If all singular values are 1, the layer enlarges no perturbation of its
    input.

    For a dense kernel of shape `(in, out)`, W is the transpose. A convolution kernel of shape
    `(height, width, in, out)` is treated as a matrix of shape `(height * width * in, out)`.

    Args:
        beta: float. The step size. The Deep Defense paper's comparison uses 0.0001 on MNIST and
            0.0003 on CIFAR-10.
        sample_rate: float, more than 0 and at most 1. The share of rows in S. S has
            `round(sample_rate * out)` rows, at least one. Defaults to `0.3`.

    Call arguments:
        kernel: tensor, shape `(..., out)`, of rank 2 or higher.

    Returns:
        Tensor of the same shape and dtype as `kernel`.

    Raises:
        ValueError: if `beta` is negative, or `sample_rate` out of its range; when called, if
            `kernel` has a rank below 2.

    Example:

    >>> import keras, keras_robust as kr
    >>> layer = keras.layers.Dense(
    ...     64, kernel_constraint=kr.constraints.ParsevalTightness(beta=0.0003))

    The rows S are a function of the bits of the current weights. They differ from step to step
    because the weights do, but they are the same in every replica and in a repeated or resumed run.
    A Keras constraint sees only the weights and has no state, and Keras's random generators would
    not survive `copy.deepcopy` and JAX's compiled steps.

    Departure from the paper: the paper scales a convolution by `1 / sqrt(height * width)` to
    account for overlapping patches, and uses convex weights where layers are added. Both are left
    to the model.

    Reference:

    - [Cisse et al., 2017](https://arxiv.org/abs/1704.08847), section 4, algorithm 1
    - Yan et al., Deep Defense: Training DNNs with Improved Adversarial Robustness, section 4, which
      uses it as a baseline
    """

    def __init__(self, beta: float, sample_rate: float = 0.3) -> None:
        self.beta = validation.check_number("beta", beta)
        self.sample_rate = validation.check_number(
            "sample_rate", sample_rate, exclusive=True, maximum=1.0
        )

    def __call__(self, kernel: Tensor) -> Tensor:
        if len(kernel.shape) < 2:
            raise ValueError(
                "A Parseval constraint needs a kernel of shape `(..., out)`, of rank 2 or higher. "
                f"Received: kernel of shape {tuple(kernel.shape)}"
            )
        kernel = ops.convert_to_tensor(kernel)
        weights = ops.transpose(ops.reshape(kernel, (-1, kernel.shape[-1])))
        weights = ops.cast(weights, working_dtype(kernel.dtype))
        rows = self._rows(weights)
        chosen = weights if rows is None else ops.take(weights, rows, axis=0)
        gram = backend.matmul(chosen, ops.transpose(chosen))
        chosen = (1 + self.beta) * chosen - self.beta * backend.matmul(gram, chosen)
        if rows is not None:
            chosen = ops.scatter_update(weights, ops.expand_dims(rows, -1), chosen)
        return ops.cast(ops.reshape(ops.transpose(chosen), kernel.shape), kernel.dtype)

    def _rows(self, weights: Tensor) -> Tensor:
        """Returns the indices of the rows S, or `None` for all rows."""
        num_rows = weights.shape[0]
        count = max(1, math.floor(self.sample_rate * num_rows + 0.5))
        if count == num_rows:
            return None
        bits = ops.view(ops.cast(weights, "float32"), "int32")
        seed = backend.fold_in(backend.make_seed(0), ops.sum(bits))
        return ops.top_k(backend.uniform((num_rows,), seed, 0.0, 1.0, "float32"), count)[1]

    def get_config(self) -> Config:
        return {"beta": self.beta, "sample_rate": self.sample_rate}
