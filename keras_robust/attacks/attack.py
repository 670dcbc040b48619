"""The base class of all attacks."""

import copy
import random
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_robust import backend, inference, validation
from keras_robust.ops import probabilities_to_logits, sparse_labels

_NUM_PROBED = 8


class Attack:
    """Base class: holds an attack's configuration, checks the input, runs the attack compiled.

    An attack is called as `attack(model, x, y, seed=None)` and returns `x_adv`. A subclass
    implements `generate`, with `keras.ops` alone; it is compiled once for each model and shape
    of the input, so a loop over steps must be a `keras.ops.fori_loop` or `while_loop`. The model
    runs in inference mode (`training=False`): batch-norm statistics are used and stay as they
    are.

    Inside of a function under construction (a custom `train_step`, a `tf.function`) the attack
    becomes part of that function, and the values of its input cannot be checked.

    Args:
        targeted: bool. `False`: `y` holds the true labels, and the attack leads away from them.
            `True`: `y` holds the labels that the attack leads to. Defaults to `False`.
        bounds: pair of floats. Valid range of `x`. Defaults to `(0.0, 1.0)`.
        from_logits: bool. Whether the model returns logits, rather than probabilities.
            Defaults to `True`.

    Call arguments:
        model: Keras model, or a callable `x -> logits`, shape `(batch_size, num_classes)`.
        x: float array or tensor, shape `(batch_size, ...)`, inside `bounds`.
        y: integer labels, shape `(batch_size,)` or `(batch_size, 1)`, or one-hot labels, shape
            `(batch_size, num_classes)`.
        seed: int. The same seed gives the same `x_adv`. Defaults to `None`: a seed from Python's
            `random`, which `keras.utils.set_random_seed` makes reproducible.

    Returns:
        Tensor, same shape and dtype as `x`, inside `bounds`. It is computed in float32 where `x`
        has a lower precision, and rounded at the end.

    Raises:
        ValueError: before any work, if an argument is not as described above; if the model's
            outputs are NaN, do not match the labels, or are not what `from_logits` says; after
            it, if the result is not finite.
    """

    def __init__(
        self,
        *,
        targeted: bool = False,
        bounds: tuple[float, float] = (0.0, 1.0),
        from_logits: bool = True,
    ) -> None:
        self.targeted = bool(targeted)
        self.bounds = validation.check_bounds(bounds)
        self.from_logits = bool(from_logits)

    def generate(self, logits: Callable[[Any], Any], x: Any, y: Any, seed: Any) -> Any:
        """Computes the adversarial images; implemented by subclasses.

        Args:
            logits: callable, differentiable, `x -> logits`.
            x: tensor of float32 or float64.
            y: int32 tensor of labels, shape `(batch_size,)`.
            seed: tensor, for the random functions of `keras_robust.backend`.
        """
        raise NotImplementedError(f"{type(self).__name__} must implement `generate`.")

    def __call__(self, model: Any, x: Any, y: Any, seed: Any = None) -> Any:
        if backend.is_tracing(x):
            if seed is None:
                raise ValueError(
                    "Argument `seed` must be given where an attack is part of a compiled "
                    "function: without it, every call would draw the same numbers. "
                    "Received: seed=None"
                )
            return self.trace(model, x, y, seed)
        x, y = ops.convert_to_tensor(x), ops.convert_to_tensor(y)
        self.check(model, ops.convert_to_numpy(x), ops.convert_to_numpy(y))
        if seed is None:
            seed = random.randint(1, 2**31 - 1)
        if isinstance(seed, int | np.integer):
            seed = backend.make_seed(int(seed))
        x_adv = self.compiled(model)(x, y, seed)
        if not bool(ops.all(ops.isfinite(x_adv))):
            raise ValueError(
                f"{self!r} returned NaN or infinite values: the model's gradient is not finite "
                "somewhere in the ball."
            )
        return x_adv

    def compiled(self, model: Any) -> Callable[[Any, Any, Any], Any]:
        """`trace`, compiled for `model`: `(x, y, seed) -> x_adv`, with nothing checked."""
        attack = copy.copy(self)
        key = (type(self), repr(sorted(vars(self).items())))
        return backend.compiled(model, key, lambda *args: attack.trace(*args))

    def trace(self, model: Any, x: Any, y: Any, seed: Any) -> Any:
        """The attack in tensor operations: precision, labels and logits around `generate`."""
        x = ops.convert_to_tensor(x)
        dtype = keras.backend.standardize_dtype(x.dtype)
        work = ops.cast(x, "float32") if dtype in ("float16", "bfloat16") else x
        if isinstance(seed, int | np.integer):
            seed = backend.make_seed(int(seed))
        x_adv = self.generate(self.logits(model), work, sparse_labels(y), seed)
        return ops.cast(ops.clip(x_adv, *self.bounds), dtype)

    def logits(self, model: Any) -> Callable[[Any], Any]:
        """The model in inference mode as a function from images to float32 logits."""

        def logits(x: Any) -> Any:
            outputs = inference.call(model, x)
            return outputs if self.from_logits else probabilities_to_logits(outputs)

        return logits

    def check(self, model: Any, x: np.ndarray, y: np.ndarray) -> None:
        """Raises a `ValueError` for input that the attack cannot work on."""
        validation.check_images(x, self.bounds)
        probe = x[:_NUM_PROBED]
        outputs = inference.outputs(model, probe)
        validation.check_outputs(outputs, len(probe), self.from_logits)
        validation.check_labels(y, len(x), outputs.shape[1])

    def get_config(self) -> dict[str, Any]:
        """The arguments of the constructor."""
        return {
            "targeted": self.targeted,
            "bounds": list(self.bounds),
            "from_logits": self.from_logits,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "Attack":
        return cls(**config)

    def __repr__(self) -> str:
        arguments = ", ".join(f"{name}={value!r}" for name, value in self.get_config().items())
        return f"{type(self).__name__}({arguments})"
