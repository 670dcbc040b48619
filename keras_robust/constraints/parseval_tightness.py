"""The constraint of Parseval networks."""

import math
from typing import Any

import keras
from keras import ops

from keras_robust import backend, validation
from keras_robust.ops.precision import working_dtype


@keras.saving.register_keras_serializable(package="keras_robust")
class ParsevalTightness(keras.constraints.Constraint):
    """Pulls a layer's weight matrix towards a Parseval tight frame, which stretches nothing.

        W_S <- (1 + beta) W_S - beta W_S W_S^T W_S

    after each step of the optimizer, on a random share S of the rows of W, one row for each output
    unit. It is one step down the gradient of `beta / 4 ||W_S W_S^T - I||^2`: a singular value s
    goes to `(1 + beta) s - beta s^3`, and so to 1 in many steps (from below `sqrt(1 + 2 / beta)`).
    Singular values of 1 mean that the layer enlarges no perturbation of its input.

    Of a dense kernel, shape `(in, out)`, W is the transpose; one of a convolution,
    `(height, width, in, out)`, is taken as `(height * width * in, out)`.

    A Keras constraint knows the weights alone and has no state, and random generators of Keras's
    would not survive `copy.deepcopy` and JAX's compiled steps. So S is a function of the bits of
    the weights that it is given: other rows in each step, as the weights are others, but the same
    in a run that is repeated or resumed, and in every replica. It always has
    `round(sample_rate * out)` rows, but at least one.

    Args:
        beta: float. The length of the step; 0.0001 on MNIST and 0.0003 on CIFAR-10 in Deep
            Defense's comparison.
        sample_rate: float, more than 0 and at most 1. The share of rows. Defaults to `0.3`.

    Call arguments:
        kernel: tensor, shape `(..., out)`, at least of rank 2.

    Returns:
        Tensor, same shape and dtype as `kernel`.

    Raises:
        ValueError: if `beta` is negative, or `sample_rate` out of its range; when called, if
            `kernel` is no matrix or higher.

    Example:

    >>> import keras, keras_robust as kr
    >>> layer = keras.layers.Dense(
    ...     64, kernel_constraint=kr.constraints.ParsevalTightness(beta=0.0003))

    Departure from the paper: it scales a convolution by `1 / sqrt(height * width)`, by which its
    patches overlap, and averages the inputs of sums with convex weights. Both are left to the
    model.

    Reference:

    - [Cisse et al., 2017](https://arxiv.org/abs/1704.08847), section 4, algorithm 1
    - Yan et al., Deep Defense: Training DNNs with Improved Adversarial Robustness, section 4, for
      which it is a rival
    """

    def __init__(self, beta: float, sample_rate: float = 0.3) -> None:
        self.beta = validation.check_number("beta", beta)
        self.sample_rate = validation.check_number(
            "sample_rate", sample_rate, exclusive=True, maximum=1.0
        )

    def __call__(self, kernel: Any) -> Any:
        if len(kernel.shape) < 2:
            raise ValueError(
                "A Parseval constraint needs a kernel of shape `(..., out)`, at least of rank 2. "
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

    def _rows(self, weights: Any) -> Any:
        """The rows S; `None` for all."""
        num_rows = weights.shape[0]
        count = max(1, math.floor(self.sample_rate * num_rows + 0.5))
        if count == num_rows:
            return None
        bits = ops.view(ops.cast(weights, "float32"), "int32")
        seed = backend.fold_in(backend.make_seed(0), ops.sum(bits))
        return ops.top_k(backend.uniform((num_rows,), seed, 0.0, 1.0, "float32"), count)[1]

    def get_config(self) -> dict[str, Any]:
        return {"beta": self.beta, "sample_rate": self.sample_rate}
