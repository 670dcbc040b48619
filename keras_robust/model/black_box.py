"""A function of NumPy arrays as a classifier."""

from collections.abc import Callable
from typing import Any

import numpy as np
from keras import ops

from keras_robust import validation
from keras_robust.types import Images


class BlackBox:
    """Wraps a function of NumPy arrays, so that attacks without gradients can query it.

        logits = function(images)

    The function may do anything: call a service, an ONNX or TFLite model, scikit-learn, or
    `model.predict`. Attacks that need no gradient (`kr.attacks.Square`, `kr.attacks.HopSkipJump`,
    `kr.attacks.GaussianNoise`), `kr.evaluate` and the metrics accept a `BlackBox` in place of a
    model. A gradient-based attack accepts it together with an `objective`, a surrogate to
    differentiate.

    For a function that returns only the predicted class, pass the number of classes:

        classes = function(images)

    `kr.attacks.HopSkipJump` needs no more than that. `kr.attacks.Square` needs scores.

    Args:
        function: callable that takes a float array of shape `(batch_size, ...)` and returns an
            array of shape `(batch_size, num_classes)`: logits, or probabilities for attacks with
            `from_logits=False`. For two classes it may also return one score per image, of class 1
            against class 0, with shape `(batch_size,)` or `(batch_size, 1)`: scikit-learn's
            `decision_function(x)` is a logit, `predict_proba(x)[:, 1]` a probability. With
            `num_classes`, it returns the predicted classes, integers of shape `(batch_size,)`. The
            result for an image must not depend on the other images in the batch.
        num_classes: int. Number of classes, if `function` returns the predicted class rather than
            scores. The outputs of the `BlackBox` are then one-hot, and suit attacks with either
            `from_logits`. Defaults to `None`: `function` returns scores.

    Attributes:
        num_queries: int. Number of images that the function has been queried for so far.

    Raises:
        ValueError: if `function` is not callable, or `num_classes` is below 2; when called, if the
            function returns classes without `num_classes`, or anything else with it.

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

    A function that is written with `keras.ops` needs no `BlackBox`: attacks compile it and use its
    gradient.
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

    def __call__(self, x: Images) -> Any:
        """Queries the function. Takes and returns tensors."""
        images = ops.convert_to_numpy(x)
        outputs = np.asarray(self.function(images))
        self.num_queries += len(images)
        if self.num_classes is not None:
            outputs = _one_hot(outputs, len(images), self.num_classes)
        elif outputs.shape == (len(images),) and outputs.dtype.kind in "iu":
            raise ValueError(
                "A function that returns the predicted classes must be wrapped with the number of "
                "classes, as in `keras_robust.BlackBox(function, num_classes=10)`. "
                f"Received: outputs of shape {outputs.shape}, dtype {outputs.dtype}"
            )
        return ops.convert_to_tensor(outputs)

    def __repr__(self) -> str:
        classes = "" if self.num_classes is None else f", num_classes={self.num_classes}"
        return f"BlackBox({self.function!r}{classes})"


def _one_hot(classes: np.ndarray, num_examples: int, num_classes: int) -> np.ndarray:
    """Converts predicted classes to class scores: 1 for the class, 0 for the others."""
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
