"""The JAX backend."""

import contextlib
from collections.abc import Callable, Hashable
from typing import Any

import jax
import keras

from keras_robust.backend.cache import cached


def input_gradient(function: Callable[[Any], Any], x: Any) -> Any:
    """Gradient of the scalar `function(x)` in `x`; nothing else is recorded."""
    return jax.grad(function)(x)


class _Recorder(keras.StatelessScope):
    """Notes which Keras variables are read."""

    def __init__(self) -> None:
        super().__init__()
        self.variables: dict[int, Any] = {}

    def get_current_value(self, variable: Any) -> Any:
        self.variables[id(variable)] = variable
        return super().get_current_value(variable)


def compiled(model: Any, key: Hashable, function: Callable[..., Any]) -> Callable[..., Any]:
    """`function(model, *tensors)`, compiled once for each `(model, key)` and tensor shapes.

    The Keras variables that it reads, which a first trace finds, go in as arguments: the
    compiled function sees their new values, as it does on TensorFlow. Any other value that
    `model` has captured is the one it was when the function was compiled.
    """

    def run(*args: Any) -> Any:
        args = tuple(jax.numpy.asarray(arg) for arg in args)
        specs = tuple((arg.shape, str(arg.dtype)) for arg in args)

        def build(reference: Callable[[], Any]) -> Any:
            with _Recorder() as recorder:
                jax.eval_shape(lambda *args: function(reference(), *args), *args)
            variables = list(recorder.variables.values())

            @jax.jit
            def stateless(values: list[Any], *args: Any) -> Any:
                mapping = list(zip(variables, values, strict=True))
                with keras.StatelessScope(state_mapping=mapping):
                    return function(reference(), *args)

            return stateless, variables

        stateless, variables = cached(model, (key, specs), build)
        return stateless([variable.value for variable in variables], *args)

    return run


def is_tracing(x: Any) -> bool:
    """Whether `x` is a symbol of a function under construction."""
    return isinstance(x, jax.core.Tracer)


def make_seed(seed: int) -> Any:
    """A seed from an integer of up to 64 bits."""
    seed = int(seed)
    return jax.random.fold_in(jax.random.PRNGKey(seed & 0x7FFFFFFF), (seed >> 31) & 0x7FFFFFFF)


def fold_in(seed: Any, data: Any) -> Any:
    """A new seed, determined by `seed` and the integer `data`."""
    return jax.random.fold_in(seed, data)


def uniform(shape: Any, seed: Any, low: float, high: float, dtype: str) -> Any:
    """Uniform random numbers from `low` to `high`."""
    return jax.random.uniform(seed, shape, minval=low, maxval=high, dtype=dtype)


def normal(shape: Any, seed: Any, dtype: str) -> Any:
    """Standard normal random numbers."""
    return jax.random.normal(seed, shape, dtype=dtype)


def device() -> str:
    """The name of the device that is computed on."""
    return jax.devices()[0].device_kind


def synchronize(x: Any) -> None:
    """Waits until `x` has been computed."""
    jax.block_until_ready(x)


def peak_memory() -> int | None:
    """The most memory that arrays have taken on a GPU, in bytes; `None` on a CPU."""
    return (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")


class TrainStep:
    """Prepares the loss outside of the gradient, then runs Keras's own `train_step`."""

    def train_step(self: Any, state: Any, data: Any) -> Any:
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        trainable, non_trainable, optimizer, _ = state
        mapping = [
            *zip(self.trainable_variables, trainable, strict=True),
            *zip(self.non_trainable_variables, non_trainable, strict=True),
            *zip(self.optimizer.variables, optimizer, strict=True),
        ]
        with contextlib.ExitStack() as stack:
            if self.needs_preparation:
                with keras.StatelessScope(state_mapping=mapping):
                    step = keras.ops.convert_to_tensor(self.optimizer.iterations)
                    seed = fold_in(make_seed(self.seed), step)
                    x = stack.enter_context(self.prepared_step(x, y, seed))
            return super().train_step(state, (x, y, sample_weight))  # type: ignore[misc]
