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

# Whether a compiled function takes batches of every size without being compiled anew.
DYNAMIC_BATCH = False


def input_gradient(function: Callable[[Any], Any], x: Any) -> Any:
    """Gradient of the scalar `function(x)` in `x`; nothing else is recorded."""
    return jax.grad(function)(x)


def value_and_gradient(function: Callable[[Any], tuple[Any, Any]], x: Any) -> tuple[Any, Any]:
    """For `function(x) = (scalar, value)`: the value, and the scalar's gradient in `x`."""
    gradient, value = jax.grad(function, has_aux=True)(x)
    return value, gradient


def value_and_jacobian(function: Callable[[Any], Any], x: Any) -> tuple[Any, Any]:
    """For `function(x)` of shape `(batch_size, k)`: its value, and its gradients in `x`.

    Each example's values depend on that example alone. The gradients have shape
    `(batch_size, k, ...)`. One pass forward, k backward.
    """
    value, pull_back = jax.vjp(function, x)

    def gradient(direction: Any) -> Any:
        return pull_back(jax.numpy.broadcast_to(direction, value.shape))[0]

    directions = jax.numpy.eye(value.shape[1], dtype=value.dtype)
    return value, jax.numpy.moveaxis(jax.vmap(gradient)(directions), 0, 1)


class _Recorder(keras.StatelessScope):
    """Notes which Keras variables are read."""

    def __init__(self) -> None:
        super().__init__()
        self.variables: dict[int, Any] = {}

    def get_current_value(self, variable: Any) -> Any:
        self.variables[id(variable)] = variable
        return super().get_current_value(variable)


def compiled(
    model: Any, key: Hashable, function: Callable[..., Any], num_batched: int = 0
) -> Callable[..., Any]:
    """`function(*tensors)`, compiled once for each `(model, key)` and tensor shapes.

    On TensorFlow, the first axis of the first `num_batched` tensors may have any size.

    The Keras variables that it reads, which a first trace finds, go in as arguments: the
    compiled function sees their new values, as it does on TensorFlow.
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

            # Compiled now, so that one executable is kept and the variables: what `jax.jit`
            # returns would keep `function`, and an executable for each kind of argument.
            values = [variable.value for variable in variables]
            return jax.jit(stateless).lower(values, *args).compile(), variables

        executable, variables = cached(model, (key, specs), build)
        return executable([variable.value for variable in variables], *args)

    return run


def keep_compiled(folder: pathlib.Path) -> None:
    """Keeps compiled functions in `folder` for other processes, unless another one is set."""
    if jax.config.jax_compilation_cache_dir is None:  # type: ignore[attr-defined]
        jax.config.update("jax_compilation_cache_dir", str(folder))


def is_tracing(x: Any) -> bool:
    """Whether `x` is a symbol of a function under construction."""
    return isinstance(x, jax.core.Tracer)


def switch(index: Any, branches: Sequence[Callable[[], Any]]) -> Any:
    """`branches[index]()`, whether `index` is known yet or not."""
    return keras.ops.switch(index, branches) if is_tracing(index) else branches[int(index)]()


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


def rounded(x: Any, dtype: Any) -> Any:
    """`x` rounded to the values that `dtype` has, in its own dtype."""
    info = jax.numpy.finfo(dtype)  # XLA may leave out a cast to and fro.
    return jax.lax.reduce_precision(x, info.nexp, info.nmant)


@contextlib.contextmanager
def seeded(variables: list[Any], seed: Any) -> Iterator[None]:
    """Inside, the Keras seed generators with these state variables draw from `seed`.

    It must be used in a compiled function, where assigning to a variable changes nothing else.
    """
    values = [variable.value for variable in variables]
    for number, variable in enumerate(variables):
        variable.assign(fold_in(seed, number).astype(variable.dtype))
    yield
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)


def host_call(
    function: Callable[[Any], tuple[Any, ...]], x: Any, outputs: tuple[tuple[str, int], ...]
) -> tuple[Any, ...]:
    """`function` of the array `x`, called when a compiled function runs; no gradient.

    `outputs` are the dtypes and widths of the arrays that it returns, with a row for each of x.
    """
    shapes = [jax.ShapeDtypeStruct((x.shape[0], width), dtype) for dtype, width in outputs]
    return tuple(jax.pure_callback(lambda x: tuple(function(x)), tuple(shapes), x))


def repeat(count: int, step: Callable[[Any], Any], state: Any) -> Any:
    """`step` applied `count` times to `state`."""
    return jax.lax.fori_loop(0, count, lambda _, state: step(state), state)


def convolution_for_loops() -> Callable[..., Any] | None:
    """Returns a convolution that is fast in loops too, or `None` where Keras's own is."""
    return convolution if jax.default_backend() == "cpu" else None


def matmul(a: Any, b: Any) -> Any:
    """The matrix product `a b` in the precision of its dtype, whatever the default is."""
    return jax.numpy.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


def product_precision() -> str:
    """The dtype that the factors of a product of float32 matrices are rounded to.

    TF32, the default on GPUs, has the 10 bits of float16's mantissa.
    """
    precision = jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]
    if precision in ("float32", "highest"):
        return "float32"
    return {"gpu": "float16", "tpu": "bfloat16"}.get(jax.default_backend(), "float32")


def device() -> str:
    """The name of the GPU, or of the processor."""
    return processor() if jax.default_backend() == "cpu" else jax.devices()[0].device_kind


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
            with keras.StatelessScope(state_mapping=mapping):
                step = keras.ops.convert_to_tensor(self.optimizer.iterations)
                seed = fold_in(make_seed(self.seed), step)
                x, y = stack.enter_context(self.prepared_step(x, y, seed))
            return super().train_step(state, (x, y, sample_weight))  # type: ignore[misc]
