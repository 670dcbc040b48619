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
from keras_robust.types import Model, Seed, Tensor

# Whether a compiled function accepts batches of any size without recompilation.
DYNAMIC_BATCH = True


def _checked(gradient: Any, x: Tensor) -> Any:
    """Returns the gradient with the static shape of `x`; raises an error if there is none."""
    if gradient is None:
        raise NoGradientError(
            "The model has no gradient with respect to its input: some operation between input "
            "and output is not differentiable, or the output does not depend on the input. Attack "
            "it with a surrogate gradient, `objective=keras_robust.attacks.BPDA(...)`, or without "
            "gradients (`keras_robust.attacks.Square`)."
        )
    gradient = tf.convert_to_tensor(gradient)
    # Some gradients, such as that of `RandomRotation`, have an unknown static shape.
    gradient.set_shape(x.shape)
    return gradient


def input_gradient(function: Callable[[Any], Any], x: Tensor) -> Any:
    """Returns the gradient of the scalar `function(x)` with respect to `x` alone."""
    return value_and_gradient(lambda x: (function(x), ()), x)[1]


def value_and_gradient(function: Callable[[Any], tuple[Any, Any]], x: Tensor) -> tuple[Any, Any]:
    """For `function(x) = (scalar, value)`, returns the value and the scalar's gradient."""
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(x)
        scalar, value = function(x)
    return value, _checked(tape.gradient(scalar, x), x)


def value_and_jacobian(function: Callable[[Any], Any], x: Tensor) -> tuple[Any, Any]:
    """For `function(x)` of shape `(batch_size, k)`, returns its value and its gradients.

    Each example's values must depend on that example only. The gradients have shape
    `(batch_size, k, ...)`. The cost is one forward pass and k backward passes.
    """
    with tf.GradientTape(watch_accessed_variables=False, persistent=True) as tape:
        tape.watch(x)
        value = function(x)
        columns = tf.unstack(value, axis=1)
    gradients = [_checked(tape.gradient(column, x), x) for column in columns]
    return value, tf.stack(gradients, axis=1)


def compiled(
    model: Model, key: Hashable, function: Callable[..., Any], num_batched: int = 0
) -> Callable[..., Any]:
    """Compiles `function(*tensors)` once for each `(model, key)` and input shapes.

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
    """Does nothing, because TensorFlow has no cache for other processes."""


def is_tracing(x: Tensor) -> bool:
    """Returns whether `x` is a symbolic tensor of a graph being built."""
    return tf.is_symbolic_tensor(x) or not tf.executing_eagerly()


def switch(index: Any, branches: Sequence[Callable[[], Any]]) -> Any:
    """Returns `branches[index]()`, whether `index` is already known or not."""
    return keras.ops.switch(index, branches)


def make_seed(seed: int) -> Seed:
    """Returns a seed from an integer of up to 64 bits."""
    seed = int(seed)
    return tf.constant([seed & 0x7FFFFFFF, (seed >> 31) & 0x7FFFFFFF], dtype="int32")


def fold_in(seed: Seed, data: Any) -> Seed:
    """Returns a new seed, determined by `seed` and the integer `data`."""
    return tf.random.experimental.stateless_fold_in(seed, tf.cast(data, "int32"))


def uniform(shape: Any, seed: Seed, low: float, high: float, dtype: str) -> Any:
    """Returns uniform random numbers from `low` to `high`."""
    return tf.random.stateless_uniform(shape, seed, minval=low, maxval=high, dtype=dtype)


def normal(shape: Any, seed: Seed, dtype: str) -> Any:
    """Returns standard normal random numbers."""
    return tf.random.stateless_normal(shape, seed, dtype=dtype)


def rounded(x: Tensor, dtype: Any) -> Any:
    """Rounds `x` to values of `dtype`, and keeps its own dtype."""
    return tf.cast(tf.cast(x, dtype), x.dtype)


@contextlib.contextmanager
def seeded(variables: list[Any], seed: Seed) -> Iterator[None]:
    """Makes the Keras seed generators with these state variables draw from `seed`."""
    mapping = [
        (variable, tf.cast(fold_in(seed, number), variable.dtype))
        for number, variable in enumerate(variables)
    ]
    with keras.StatelessScope(state_mapping=mapping) if mapping else contextlib.nullcontext():
        yield


def host_call(
    function: Callable[[Any], tuple[Any, ...]], x: Tensor, outputs: tuple[tuple[str, int], ...]
) -> tuple[Any, ...]:
    """Calls `function` on the array `x` when a compiled function runs. It has no gradient.

    `outputs` lists the dtype and width of each array that `function` returns. Each array has one
    row for each row of `x`.
    """
    results = tf.numpy_function(function, [x], [dtype for dtype, _ in outputs], stateful=False)
    return tuple(
        tf.ensure_shape(result, (x.shape[0], width))
        for result, (_, width) in zip(results, outputs, strict=True)
    )


def repeat(count: int, step: Callable[[Any], Any], state: Any) -> Any:
    """Applies `step` `count` times to `state`.

    To compile the gradient, XLA must know the number of states to store. `keras.ops.fori_loop` does
    not provide it.
    """
    return tf.while_loop(
        lambda i, state: i < count,
        lambda i, state: (i + 1, step(state)),
        (0, state),
        maximum_iterations=count,
    )[1]


def convolution_for_loops() -> Callable[..., Any] | None:
    """Returns a convolution that is fast inside loops, or `None` if Keras's own is."""
    return None


def matmul(a: Any, b: Any) -> Any:
    """Returns the matrix product `a b` in the precision of its dtype, whatever the default is.

    Where TensorFlow would use TF32, the product is computed in float64, because TensorFlow cannot
    set the precision of a single product.
    """
    a, b = tf.convert_to_tensor(a), tf.convert_to_tensor(b)
    if a.dtype == tf.float32 and product_precision() != "float32":
        return tf.cast(tf.matmul(tf.cast(a, tf.float64), tf.cast(b, tf.float64)), tf.float32)
    return tf.matmul(a, b)


def product_precision() -> str:
    """Returns the dtype to which the factors of a product of float32 matrices are rounded.

    TF32, the default on GPUs, has the same 10-bit mantissa as float16.
    """
    is_short = tf.config.experimental.tensor_float_32_execution_enabled()
    return "float16" if is_short and tf.config.list_physical_devices("GPU") else "float32"


def device() -> str:
    """Returns the name of the GPU, or of the CPU."""
    accelerators = [d for d in tf.config.list_physical_devices() if d.device_type != "CPU"]
    if not accelerators:
        return processor()
    return tf.config.experimental.get_device_details(accelerators[0]).get("device_name", "gpu")


class TrainStep:
    """Prepares the loss outside the gradient tape, then runs Keras's own `train_step`."""

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
