"""What is raised where there is no gradient."""


class NoGradientError(ValueError):
    """The model has no gradient in its input: TensorFlow finds none. JAX has one that is 0."""
