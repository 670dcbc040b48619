"""A function of NumPy arrays as a classifier."""

from collections.abc import Callable
from typing import Any

import numpy as np
from keras import ops


class BlackBox:
    """Wraps a function of NumPy arrays, so that attacks without gradients can ask it.

        logits = function(images)

    The function may do anything: call a service, an ONNX or TFLite model, scikit-learn, or
    `model.predict`. Attacks that need no gradient (`kr.attacks.Square`,
    `kr.attacks.GaussianNoise`), `kr.evaluate` and the metrics take it in place of a model. An
    attack by gradients takes it with an `objective`, a surrogate to differentiate.

    A function that can be written with `keras.ops` needs no `BlackBox`: attacks then have its
    gradient, and compile it.

    Args:
        function: callable, from a float array of shape `(batch_size, ...)` to an array of shape
            `(batch_size, num_classes)`: logits, or probabilities where the attack has
            `from_logits=False`. It must answer to each image alone.

    Attributes:
        num_queries: int. How many images the function has been asked about so far.

    Raises:
        ValueError: if `function` is no callable.

    Example:

    >>> import numpy as np, keras_robust as kr
    >>> weights = np.random.default_rng(0).normal(size=(64, 10))
    >>> model = kr.BlackBox(lambda x: x.reshape(len(x), -1) @ weights)
    >>> x, y = np.random.rand(4, 8, 8, 1).astype("float32"), np.array([3, 1, 4, 1])
    >>> result = kr.attacks.Square(epsilon=0.3, num_queries=50).run(model, x, y, seed=0)
    >>> model.num_queries > 4
    True
    """

    def __init__(self, function: Callable[[np.ndarray], Any]) -> None:
        if not callable(function):
            raise ValueError(
                f"Argument `function` must be a callable. Received: function={function!r}"
            )
        self.function = function
        self.num_queries = 0

    def __call__(self, x: Any) -> Any:
        """Asks the function; takes and returns tensors."""
        images = ops.convert_to_numpy(x)
        outputs = np.asarray(self.function(images))
        self.num_queries += len(images)
        return ops.convert_to_tensor(outputs)

    def __repr__(self) -> str:
        return f"BlackBox({self.function!r})"
