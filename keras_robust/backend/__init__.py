"""The only place that imports TensorFlow or JAX.

Everything above this package is written with `keras.ops`. What `keras.ops` does not have is
here, once for each backend, under the same names:

- `input_gradient(function, x)`: the gradient of a scalar function of a tensor;
  `value_and_gradient`, `value_and_jacobian`: with the value.
- `NoGradientError`: what these raise on TensorFlow where there is none; on JAX it is 0.
- `compiled(model, key, function)`: `function(...)` compiled once per model, key and shapes.
- `is_tracing(x)`: whether a compiled function is being traced, so that `x` has no values yet.
- `keep_compiled(folder)`: keeps compiled functions for other processes; on TensorFlow nothing.
- `DYNAMIC_BATCH`: whether a compiled function takes batches of every size.
- `make_seed`, `fold_in`, `uniform`, `normal`: random numbers without state.
- `rounded(x, dtype)`: `x` rounded to the values of another dtype.
- `seeded(variables, seed)`: Keras's seed generators, made functions of a seed.
- `TrainStep`: `train_step` of a `keras.Model`, which prepares the loss before the gradient tape.
- `host_call(function, x, outputs)`: a function of arrays, called by a compiled one as it runs.
- `switch(index, branches)`: `keras.ops.switch`, which never compiles the other branches for a
  call from Python.
- `repeat(count, step, state)`: a loop of fixed length, whose gradient XLA can compile.
- `convolution_for_loops()`: a convolution that is fast in loops too; `None` if Keras's own is.
- `matmul(a, b)`: a matrix product in full precision, whatever the device's default is.
- `product_precision()`: the dtype that factors of a matrix product are rounded to.
- `device()`: what the computation runs on, in words.
- `synchronize(x)`: waits until `x` has been computed.
- `peak_memory()`: the most memory that tensors have taken on a GPU, in bytes.
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
    from keras_robust.backend.tensorflow import peak_memory as peak_memory
    from keras_robust.backend.tensorflow import product_precision as product_precision
    from keras_robust.backend.tensorflow import repeat as repeat
    from keras_robust.backend.tensorflow import rounded as rounded
    from keras_robust.backend.tensorflow import seeded as seeded
    from keras_robust.backend.tensorflow import switch as switch
    from keras_robust.backend.tensorflow import synchronize as synchronize
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
    from keras_robust.backend.jax import peak_memory as peak_memory
    from keras_robust.backend.jax import product_precision as product_precision
    from keras_robust.backend.jax import repeat as repeat
    from keras_robust.backend.jax import rounded as rounded
    from keras_robust.backend.jax import seeded as seeded
    from keras_robust.backend.jax import switch as switch
    from keras_robust.backend.jax import synchronize as synchronize
    from keras_robust.backend.jax import uniform as uniform
    from keras_robust.backend.jax import value_and_gradient as value_and_gradient
    from keras_robust.backend.jax import value_and_jacobian as value_and_jacobian
else:
    raise ImportError(
        "keras_robust runs on Keras's `tensorflow` and `jax` backends. Set the environment "
        "variable KERAS_BACKEND to one of them before Keras is imported. "
        f"Received: backend={keras.backend.backend()!r}"
    )
