"""The only package that imports JAX and, besides `datasets`, TensorFlow.

All packages above this one use `keras.ops`. Functions that `keras.ops` lacks are implemented
here once for each backend, under the same names:

- `input_gradient(function, x)`: the gradient of a scalar function with respect to a tensor.
  `value_and_gradient` and `value_and_jacobian` also return the value.
- `NoGradientError`: raised by these functions on TensorFlow if no gradient exists. On JAX, the
  gradient is 0 in that case.
- `compiled(model, key, function)`: compiles `function` once for each model, key and input shapes.
- `is_tracing(x)`: whether a compiled function is being traced, so that `x` has no values yet.
- `keep_compiled(folder)`: caches compiled functions for other processes. Does nothing on
  TensorFlow.
- `DYNAMIC_BATCH`: whether a compiled function accepts batches of any size.
- `make_seed`, `fold_in`, `uniform`, `normal`: stateless random numbers.
- `rounded(x, dtype)`: rounds `x` to the values of another dtype.
- `seeded(variables, seed)`: makes Keras's seed generators draw from a seed.
- `TrainStep`: a `train_step` for `keras.Model` that prepares the loss before the gradient tape.
- `host_call(function, x, outputs)`: calls a function of arrays when a compiled function runs.
- `switch(index, branches)`: `keras.ops.switch`, which compiles only the selected branch when
  called eagerly.
- `repeat(count, step, state)`: a loop of fixed length whose gradient XLA can compile.
- `convolution_for_loops()`: a convolution that is fast inside loops, or `None` if Keras's own is.
- `matmul(a, b)`: a matrix product in full precision, whatever the device's default is.
- `product_precision()`: the dtype to which the factors of a matrix product are rounded.
- `device()`: the name of the device.
"""

import keras

from keras_robust.backend.no_gradient import NoGradientError as NoGradientError

if keras.backend.backend() == "tensorflow":
    from keras_robust.backend.tensorflow import DYNAMIC_BATCH as DYNAMIC_BATCH
    from keras_robust.backend.tensorflow import TrainStep as TrainStep
    from keras_robust.backend.tensorflow import compiled as compiled
    from keras_robust.backend.tensorflow import convolution_for_loops as convolution_for_loops
    from keras_robust.backend.tensorflow import device as device
    from keras_robust.backend.tensorflow import fold_in as fold_in
    from keras_robust.backend.tensorflow import host_call as host_call
    from keras_robust.backend.tensorflow import input_gradient as input_gradient
    from keras_robust.backend.tensorflow import is_tracing as is_tracing
    from keras_robust.backend.tensorflow import keep_compiled as keep_compiled
    from keras_robust.backend.tensorflow import make_seed as make_seed
    from keras_robust.backend.tensorflow import matmul as matmul
    from keras_robust.backend.tensorflow import normal as normal
    from keras_robust.backend.tensorflow import product_precision as product_precision
    from keras_robust.backend.tensorflow import repeat as repeat
    from keras_robust.backend.tensorflow import rounded as rounded
    from keras_robust.backend.tensorflow import seeded as seeded
    from keras_robust.backend.tensorflow import switch as switch
    from keras_robust.backend.tensorflow import uniform as uniform
    from keras_robust.backend.tensorflow import value_and_gradient as value_and_gradient
    from keras_robust.backend.tensorflow import value_and_jacobian as value_and_jacobian
elif keras.backend.backend() == "jax":
    from keras_robust.backend.jax import DYNAMIC_BATCH as DYNAMIC_BATCH
    from keras_robust.backend.jax import TrainStep as TrainStep  # type: ignore[assignment]
    from keras_robust.backend.jax import compiled as compiled
    from keras_robust.backend.jax import convolution_for_loops as convolution_for_loops
    from keras_robust.backend.jax import device as device
    from keras_robust.backend.jax import fold_in as fold_in
    from keras_robust.backend.jax import host_call as host_call
    from keras_robust.backend.jax import input_gradient as input_gradient
    from keras_robust.backend.jax import is_tracing as is_tracing
    from keras_robust.backend.jax import keep_compiled as keep_compiled
    from keras_robust.backend.jax import make_seed as make_seed
    from keras_robust.backend.jax import matmul as matmul
    from keras_robust.backend.jax import normal as normal
    from keras_robust.backend.jax import product_precision as product_precision
    from keras_robust.backend.jax import repeat as repeat
    from keras_robust.backend.jax import rounded as rounded
    from keras_robust.backend.jax import seeded as seeded
    from keras_robust.backend.jax import switch as switch
    from keras_robust.backend.jax import uniform as uniform
    from keras_robust.backend.jax import value_and_gradient as value_and_gradient
    from keras_robust.backend.jax import value_and_jacobian as value_and_jacobian
else:
    raise ImportError(
        "keras_robust runs on Keras's `tensorflow` and `jax` backends. Set the environment "
        "variable KERAS_BACKEND to one of them before Keras is imported. "
        f"Received: backend={keras.backend.backend()!r}"
    )
