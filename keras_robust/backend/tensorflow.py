"""The TensorFlow backend."""

import contextlib
import pathlib
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any

import keras
import tensorflow as tf

from keras_robust.backend.cache import cached
from keras_robust.backend.no_gradient import NoGradientError
from keras_robust.backend.processor import processor

# Whether a compiled function takes batches of every size without being compiled anew.
DYNAMIC_BATCH = True


def _checked(gradient: Any, x: Any) -> Any:
    """The gradient in `x`, with the shape that is known of `x`."""
    if gradient is None:
        raise NoGradientError(
            "The model has no gradient in its input: some operation between input and output is "
            "not differentiable, or the output does not depend on the input. Attack it through "
            "an `objective` (`keras_robust.attacks.BPDA`), or without gradients "
            "(`keras_robust.attacks.Square`)."
        )
    gradient = tf.convert_to_tensor(gradient)
    gradient.set_shape(x.shape)  # Some operations leave it open, as `RandomRotation`'s.
    return gradient


def input_gradient(function: Callable[[Any], Any], x: Any) -> Any:
    """Gradient of the scalar `function(x)` in `x`; nothing else is recorded."""
    return value_and_gradient(lambda x: (function(x), ()), x)[1]


def value_and_gradient(function: Callable[[Any], tuple[Any, Any]], x: Any) -> tuple[Any, Any]:
    """For `function(x) = (scalar, value)`: the value, and the scalar's gradient in `x`."""
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(x)
        scalar, value = function(x)
    return value, _checked(tape.gradient(scalar, x), x)


def value_and_jacobian(function: Callable[[Any], Any], x: Any) -> tuple[Any, Any]:
    """For `function(x)` of shape `(batch_size, k)`: its value, and its gradients in `x`.

    Each example's values depend on that example alone. The gradients have shape
    `(batch_size, k, ...)`. One pass forward, k backward.
    """
    with tf.GradientTape(watch_accessed_variables=False, persistent=True) as tape:
        tape.watch(x)
        value = function(x)
        columns = tf.unstack(value, axis=1)
    gradients = [_checked(tape.gradient(column, x), x) for column in columns]
    return value, tf.stack(gradients, axis=1)


def compiled(
    model: Any, key: Hashable, function: Callable[..., Any], num_batched: int = 0
) -> Callable[..., Any]:
    """`function(*tensors)`, compiled once for each `(model, key)` and tensor shapes.

    The first axis of the first `num_batched` tensors may have any size.
    """

    def run(*args: Any) -> Any:
        args = tuple(tf.convert_to_tensor(arg) for arg in args)
        shapes = [[None, *arg.shape[1:]] for arg in args[:num_batched]]
        shapes += [arg.shape for arg in args[num_batched:]]
        specs = tuple(
            tf.TensorSpec(shape, arg.dtype) for shape, arg in zip(shapes, args, strict=True)
        )

        def build() -> Any:
            return tf.function(function, autograph=False).get_concrete_function(*specs)

        return cached(model, (key, specs), build)(*args)

    return run


def keep_compiled(folder: pathlib.Path) -> None:
    """Nothing: TensorFlow compiles for one process."""


def is_tracing(x: Any) -> bool:
    """Whether `x` is a symbol of a graph under construction."""
    return tf.is_symbolic_tensor(x) or not tf.executing_eagerly()


def switch(index: Any, branches: Sequence[Callable[[], Any]]) -> Any:
    """`branches[index]()`, whether `index` is known yet or not."""
    return keras.ops.switch(index, branches)


def make_seed(seed: int) -> Any:
    """A seed from an integer of up to 64 bits."""
    seed = int(seed)
    return tf.constant([seed & 0x7FFFFFFF, (seed >> 31) & 0x7FFFFFFF], dtype="int32")


def fold_in(seed: Any, data: Any) -> Any:
    """A new seed, determined by `seed` and the integer `data`."""
    return tf.random.experimental.stateless_fold_in(seed, tf.cast(data, "int32"))


def uniform(shape: Any, seed: Any, low: float, high: float, dtype: str) -> Any:
    """Uniform random numbers from `low` to `high`."""
    return tf.random.stateless_uniform(shape, seed, minval=low, maxval=high, dtype=dtype)


def normal(shape: Any, seed: Any, dtype: str) -> Any:
    """Standard normal random numbers."""
    return tf.random.stateless_normal(shape, seed, dtype=dtype)


def rounded(x: Any, dtype: Any) -> Any:
    """`x` rounded to the values that `dtype` has, in its own dtype."""
    return tf.cast(tf.cast(x, dtype), x.dtype)


@contextlib.contextmanager
def seeded(variables: list[Any], seed: Any) -> Iterator[None]:
    """Inside, the Keras seed generators with these state variables draw from `seed`."""
    mapping = [
        (variable, tf.cast(fold_in(seed, number), variable.dtype))
        for number, variable in enumerate(variables)
    ]
    with keras.StatelessScope(state_mapping=mapping) if mapping else contextlib.nullcontext():
        yield


def host_call(
    function: Callable[[Any], tuple[Any, ...]], x: Any, outputs: tuple[tuple[str, int], ...]
) -> tuple[Any, ...]:
    """`function` of the array `x`, called when a compiled function runs; no gradient.

    `outputs` are the dtypes and widths of the arrays that it returns, with a row for each of x.
    """
    results = tf.numpy_function(function, [x], [dtype for dtype, _ in outputs], stateful=False)
    return tuple(
        tf.ensure_shape(result, (x.shape[0], width))
        for result, (_, width) in zip(results, outputs, strict=True)
    )


def repeat(count: int, step: Callable[[Any], Any], state: Any) -> Any:
    """`step` applied `count` times to `state`.

    For the gradient XLA must know how many states to keep, which `keras.ops.fori_loop` does not
    tell it.
    """
    return tf.while_loop(
        lambda i, state: i < count,
        lambda i, state: (i + 1, step(state)),
        (0, state),
        maximum_iterations=count,
    )[1]


def convolution_for_loops() -> Callable[..., Any] | None:
    """Returns a convolution that is fast in loops too, or `None` where Keras's own is."""
    return None


def matmul(a: Any, b: Any) -> Any:
    """The matrix product `a b` in the precision of its dtype, whatever the default is.

    Where float32 matrices are multiplied in TF32, it is computed in float64: TensorFlow has no
    precision of a single product.
    """
    a, b = tf.convert_to_tensor(a), tf.convert_to_tensor(b)
    if a.dtype == tf.float32 and product_precision() != "float32":
        return tf.cast(tf.matmul(tf.cast(a, tf.float64), tf.cast(b, tf.float64)), tf.float32)
    return tf.matmul(a, b)


def product_precision() -> str:
    """The dtype that the factors of a product of float32 matrices are rounded to.

    TF32, the default on GPUs, has the 10 bits of float16's mantissa.
    """
    is_short = tf.config.experimental.tensor_float_32_execution_enabled()
    return "float16" if is_short and tf.config.list_physical_devices("GPU") else "float32"


def device() -> str:
    """The name of the GPU, or of the processor."""
    accelerators = [d for d in tf.config.list_physical_devices() if d.device_type != "CPU"]
    if not accelerators:
        return processor()
    return tf.config.experimental.get_device_details(accelerators[0]).get("device_name", "gpu")


def synchronize(x: Any) -> None:
    """Waits until `x` has been computed."""
    for tensor in tf.nest.flatten(x):
        tensor.numpy()


def peak_memory() -> int | None:
    """The most memory that tensors have taken on a GPU, in bytes; `None` on a CPU."""
    if not tf.config.list_logical_devices("GPU"):
        return None
    return tf.config.experimental.get_memory_info("GPU:0")["peak"]


class TrainStep:
    """Prepares the loss outside of the gradient tape, then runs Keras's own `train_step`."""

    def train_step(self: Any, data: Any) -> Any:
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        if self.needs_preparation and not self.base_model.built:
            self(x, training=False)
        seed = fold_in(make_seed(self.seed), self.optimizer.iterations)
        replica = tf.distribute.get_replica_context()
        if replica is not None and replica.num_replicas_in_sync > 1:
            seed = fold_in(seed, replica.replica_id_in_sync_group)
        with self.prepared_step(x, y, seed) as (x, y):
            return super().train_step((x, y, sample_weight))  # type: ignore[misc]
