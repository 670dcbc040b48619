"""A function of NumPy arrays as a classifier."""

from collections.abc import Callable
from typing import Any

import numpy as np
from keras import ops

from keras_robust import validation


class BlackBox:
    """Wraps a function of NumPy arrays, so that attacks without gradients can ask it.

        logits = function(images)

    The function may do anything: call a service, an ONNX or TFLite model, scikit-learn, or
    `model.predict`. Attacks that need no gradient (`kr.attacks.Square`,
    `kr.attacks.HopSkipJump`, `kr.attacks.GaussianNoise`), `kr.evaluate` and the metrics take it in
    place of a model. An attack by gradients takes it with an `objective`, a surrogate to
    differentiate.

    A function that tells the predicted class and nothing else is wrapped with the number of
    classes:

        classes = function(images)

    `kr.attacks.HopSkipJump` is made for it. `kr.attacks.Square` needs scores.

    A function that can be written with `keras.ops` needs no `BlackBox`: attacks then have its
    gradient, and compile it.

    Args:
        function: callable, from a float array of shape `(batch_size, ...)` to an array of shape
            `(batch_size, num_classes)`: logits, or probabilities where the attack has
            `from_logits=False`. Of two classes also one score, `(batch_size,)` or
            `(batch_size, 1)`, of class 1 against class 0: scikit-learn's `decision_function(x)`
            is a logit, `predict_proba(x)[:, 1]` a probability. With `num_classes`, to integers of
            shape `(batch_size,)`: the predicted classes. It must answer to each image alone.
        num_classes: int. How many classes there are, where `function` returns the predicted class
            rather than scores; the model's outputs are then one-hot, and fit attacks of either
            `from_logits`. Defaults to `None`: it returns scores.

    Attributes:
        num_queries: int. How many images the function has been asked about so far.

    Raises:
        ValueError: if `function` is no callable, or `num_classes` is below 2; when called, if the
            function returns classes without `num_classes`, or something else with it.

    Example:

    >>> import numpy as np, keras_robust as kr
    >>> weights = np.random.default_rng(0).normal(size=(64, 10))
    >>> model = kr.BlackBox(lambda x: x.reshape(len(x), -1) @ weights)
    >>> x, y = np.random.rand(4, 8, 8, 1).astype("float32"), np.array([3, 1, 4, 1])
    >>> result = kr.attacks.Square(epsilon=0.3, num_queries=50).run(model, x, y, seed=0)
    >>> model.num_queries > 4
    True
    >>> model = kr.BlackBox(
    ...     lambda x: (x.reshape(len(x), -1) @ weights).argmax(axis=1), num_classes=10)
    >>> result = kr.attacks.HopSkipJump(num_queries=200).run(model, x, y, seed=0)
    """

    def __init__(
        self, function: Callable[[np.ndarray], Any], num_classes: int | None = None
    ) -> None:
        if not callable(function):
            raise ValueError(
                f"Argument `function` must be a callable. Received: function={function!r}"
            )
        self.function = function
        if num_classes is not None:
            num_classes = validation.check_count("num_classes", num_classes, minimum=2)
        self.num_classes = num_classes
        self.num_queries = 0

    def __call__(self, x: Any) -> Any:
        """Asks the function; takes and returns tensors."""
        images = ops.convert_to_numpy(x)
        outputs = np.asarray(self.function(images))
        self.num_queries += len(images)
        if self.num_classes is not None:
            outputs = _one_hot(outputs, len(images), self.num_classes)
        elif outputs.shape == (len(images),) and outputs.dtype.kind in "iu":
            raise ValueError(
                "A function that returns the predicted classes must be wrapped with their number, "
                "as `keras_robust.BlackBox(function, num_classes=10)`. "
                f"Received: outputs of shape {outputs.shape}, dtype {outputs.dtype}"
            )
        return ops.convert_to_tensor(outputs)

    def __repr__(self) -> str:
        classes = "" if self.num_classes is None else f", num_classes={self.num_classes}"
        return f"BlackBox({self.function!r}{classes})"


def _one_hot(classes: np.ndarray, num_examples: int, num_classes: int) -> np.ndarray:
    """Predicted classes as class scores: 1 for the class, 0 for the others."""
    if classes.shape != (num_examples,) or classes.dtype.kind not in "iu":
        raise ValueError(
            "With `num_classes`, the function of a `keras_robust.BlackBox` must return the "
            f"predicted class of each image, integers of shape ({num_examples},). "
            f"Received: outputs of shape {classes.shape}, dtype {classes.dtype}"
        )
    if classes.min() < 0 or classes.max() >= num_classes:
        raise ValueError(
            f"The classes that the function of a `keras_robust.BlackBox` returns must be from 0 to "
            f"{num_classes - 1}, to match its `num_classes`. "
            f"Received: classes from {classes.min()} to {classes.max()}"
        )
    return np.eye(num_classes, dtype="float32")[classes]
