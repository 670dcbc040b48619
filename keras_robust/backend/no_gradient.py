"""The error for a model without a gradient."""


class NoGradientError(ValueError):
    """The model has no gradient with respect to its input.

    Only TensorFlow raises it. On JAX, the gradient is 0 in that case.
    """
