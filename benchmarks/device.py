"""Waits for the backend's device, and measures its memory, for the benchmarks."""

from typing import Any

import keras

if keras.backend.backend() == "jax":
    import jax

    def synchronize(x: Any) -> None:
        """Waits until `x` has been computed."""
        jax.block_until_ready(x)

    def peak_memory() -> int | None:
        """Returns the peak memory of arrays on a GPU in bytes, or `None` on a CPU."""
        return (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")

else:
    import tensorflow as tf

    def synchronize(x: Any) -> None:
        """Waits until `x` has been computed."""
        for tensor in tf.nest.flatten(x):
            tensor.numpy()

    def peak_memory() -> int | None:
        """Returns the peak memory of tensors on a GPU in bytes, or `None` on a CPU."""
        if not tf.config.list_logical_devices("GPU"):
            return None
        return tf.config.experimental.get_memory_info("GPU:0")["peak"]
