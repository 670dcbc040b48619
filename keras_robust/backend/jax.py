"""The JAX backend."""

import contextlib
import pathlib
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any

import jax
import keras

from keras_robust.backend.cache import cached
from keras_robust.backend.jax_convolution import convolution
from keras_robust.backend.processor import processor
from keras_robust.types import Model, Seed, Tensor

# Whether a compiled function accepts batches of any size without recompilation.
DYNAMIC_BATCH = False


def input_gradient(function: Callable[[Any], Any], x: Tensor) -> Any:
    """Returns the gradient of the scalar `function(x)` with respect to `x` alone."""
    return jax.grad(function)(x)


def value_and_gradient(function: Callable[[Any], tuple[Any, Any]], x: Tensor) -> tuple[Any, Any]:
    """For `function(x) = (scalar, value)`, returns the value and the scalar's gradient."""
    gradient, value = jax.grad(function, has_aux=True)(x)
    return value, gradient


def value_and_jacobian(function: Callable[[Any], Any], x: Tensor) -> tuple[Any, Any]:
    """For `function(x)` of shape `(batch_size, k)`, returns its value and its gradients.

    Each example's values must depend on that example only. The gradients have shape
    `(batch_size, k, ...)`. The cost is one forward pass and k backward passes.
    """
    value, pull_back = jax.vjp(function, x)

    def gradient(direction: Any) -> Any:
        return pull_back(jax.numpy.broadcast_to(direction, value.shape))[0]

    directions = jax.numpy.eye(value.shape[1], dtype=value.dtype)
    return value, jax.numpy.moveaxis(jax.vmap(gradient)(directions), 0, 1)


class _Recorder(keras.StatelessScope):
    """Records which Keras variables are read."""

    def __init__(self) -> None:
        super().__init__()
        self.variables: dict[int, Any] = {}

    def get_current_value(self, variable: Any) -> Any:
        self.variables[id(variable)] = variable
        return super().get_current_value(variable)


def compiled(
    model: Model, key: Hashable, function: Callable[..., Any], num_batched: int = 0
) -> Callable[..., Any]:
    """Compiles `function(*tensors)` once for each `(model, key)` and input shapes.

    `num_batched` has no effect. On TensorFlow, it allows batches of any size.

    A first trace finds the Keras variables that the function reads. They become arguments, so that
    the compiled function sees their current values, as on TensorFlow.
    """

    def run(*args: Any) -> Any:
        args = tuple(jax.numpy.asarray(arg) for arg in args)
        specs = tuple((arg.shape, str(arg.dtype), arg.sharding) for arg in args)

        def build() -> Any:
            with _Recorder() as recorder:
                jax.eval_shape(function, *args)
            variables = list(recorder.variables.values())

            def stateless(values: list[Any], *args: Any) -> Any:
                mapping = list(zip(variables, values, strict=True))
                with keras.StatelessScope(state_mapping=mapping):
                    return function(*args)

            # Compiled here so that the cache holds one executable and the variables. The result of
            # `jax.jit` would hold `function` and one executable for each kind of argument.
            values = [variable.value for variable in variables]
            return jax.jit(stateless).lower(values, *args).compile(), variables

        executable, variables = cached(model, (key, specs), build)
        return executable([variable.value for variable in variables], *args)

    return run


def keep_compiled(folder: pathlib.Path) -> None:
    """Caches compiled functions in `folder` for other processes, unless a cache is set."""
    if jax.config.jax_compilation_cache_dir is None:  # type: ignore[attr-defined]
        jax.config.update("jax_compilation_cache_dir", str(folder))


def is_tracing(x: Tensor) -> bool:
    """Returns whether `x` is a tracer of a function being compiled."""
    return isinstance(x, jax.core.Tracer)


def switch(index: Any, branches: Sequence[Callable[[], Any]]) -> Any:
    """Returns `branches[index]()`, whether `index` is already known or not."""
    return keras.ops.switch(index, branches) if is_tracing(index) else branches[int(index)]()


def make_seed(seed: int) -> Seed:
    """Returns a seed from an integer of up to 64 bits."""
    seed = int(seed)
    return jax.random.fold_in(jax.random.PRNGKey(seed & 0x7FFFFFFF), (seed >> 31) & 0x7FFFFFFF)


def fold_in(seed: Seed, data: Any) -> Seed:
    """Returns a new seed, determined by `seed` and the integer `data`."""
    return jax.random.fold_in(seed, data)


def uniform(shape: Any, seed: Seed, low: float, high: float, dtype: str) -> Any:
    """Returns uniform random numbers from `low` to `high`."""
    return jax.random.uniform(seed, shape, minval=low, maxval=high, dtype=dtype)


def normal(shape: Any, seed: Seed, dtype: str) -> Any:
    """Returns standard normal random numbers."""
    return jax.random.normal(seed, shape, dtype=dtype)


def rounded(x: Tensor, dtype: Any) -> Any:
    """Rounds `x` to values of `dtype`, and keeps its own dtype."""
    # Not two casts, which XLA may optimize away.
    info = jax.numpy.finfo(dtype)
    return jax.lax.reduce_precision(x, info.nexp, info.nmant)


@contextlib.contextmanager
def seeded(variables: list[Any], seed: Seed) -> Iterator[None]:
    """Makes the Keras seed generators with these state variables draw from `seed`.

    Use it only in a compiled function, where assigning to a variable has no effect outside.
    """
    values = [variable.value for variable in variables]
    for number, variable in enumerate(variables):
        variable.assign(fold_in(seed, number).astype(variable.dtype))
    yield
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)


def host_call(
    function: Callable[[Any], tuple[Any, ...]], x: Tensor, outputs: tuple[tuple[str, int], ...]
) -> tuple[Any, ...]:
    """Calls `function` on the array `x` when a compiled function runs. It has no gradient.

    `outputs` lists the dtype and width of each array that `function` returns. Each array has one
    row for each row of `x`.
    """
    shapes = [jax.ShapeDtypeStruct((x.shape[0], width), dtype) for dtype, width in outputs]
    return tuple(jax.pure_callback(lambda x: tuple(function(x)), tuple(shapes), x))


def repeat(count: int, step: Callable[[Any], Any], state: Any) -> Any:
    """Applies `step` `count` times to `state`."""
    return jax.lax.fori_loop(0, count, lambda _, state: step(state), state)


def convolution_for_loops() -> Callable[..., Any] | None:
    """Returns a convolution that is fast inside loops, or `None` if Keras's own is."""
    return convolution if jax.default_backend() == "cpu" else None


def matmul(a: Any, b: Any) -> Any:
    """Returns the matrix product `a b` in the precision of its dtype, whatever the default is."""
    return jax.numpy.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


def product_precision() -> str:
    """Returns the dtype to which the factors of a product of float32 matrices are rounded.

    TF32, the default on GPUs, has the same 10-bit mantissa as float16.
    """
    precision = jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]
    if precision in ("float32", "highest"):
        return "float32"
    return {"gpu": "float16", "tpu": "bfloat16"}.get(jax.default_backend(), "float32")


def device() -> str:
    """Returns the name of the GPU, or of the CPU."""
    return processor() if jax.default_backend() == "cpu" else jax.devices()[0].device_kind


class TrainStep:
    """Prepares the loss outside the gradient, then runs Keras's own `train_step`."""

    def train_step(self: Any, state: Any, data: Any) -> Any:
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        trainable, non_trainable, optimizer, _ = state
        mapping = [
            *zip(self.trainable_variables, trainable, strict=True),
            *zip(self.non_trainable_variables, non_trainable, strict=True),
            *zip(self.optimizer.variables, optimizer, strict=True),
        ]
        with contextlib.ExitStack() as stack:
            with keras.StatelessScope(state_mapping=mapping):
                step = keras.ops.convert_to_tensor(self.optimizer.iterations)
                seed = fold_in(make_seed(self.seed), step)
                x, y = stack.enter_context(self.prepared_step(x, y, seed))
            return super().train_step(state, (x, y, sample_weight))  # type: ignore[misc]
