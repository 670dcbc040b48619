"""A convolution on CPUs that is as fast in a loop as outside."""

import functools
from typing import Any

import jax
from jax import lax

_SPATIAL = "DHW"


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def convolution(
    x: Any, kernel: Any, strides: tuple[int, ...], padding: str, dilations: tuple[int, ...]
) -> Any:
    """`keras.ops.conv` of channels last and one group.

    XLA has fast code on CPUs for convolutions whose axes are in this order. It puts others, such
    as the gradient in x that JAX makes, into it, but not inside of loops, where they take 4 times
    as long or more. So this gradient is in it from the start.
    """
    return _convolution(x, kernel, strides, padding, dilations)


def _convolution(
    x: Any, kernel: Any, strides: tuple[int, ...], padding: Any, dilations: tuple[int, ...]
) -> Any:
    return lax.conv_general_dilated(
        x, kernel, strides, padding, None, dilations, _axes(len(strides))
    )


def _axes(rank: int) -> tuple[str, str, str]:
    spatial = _SPATIAL[-rank:]
    return f"N{spatial}C", f"{spatial}IO", f"N{spatial}C"


def _forward(x: Any, kernel: Any, *static: Any) -> Any:
    return convolution(x, kernel, *static), (x, kernel)


def _backward(
    strides: tuple[int, ...], padding: str, dilations: tuple[int, ...], saved: Any, upstream: Any
) -> tuple[Any, Any]:
    x, kernel = saved
    rank = len(strides)
    reach = [(size - 1) * d + 1 for size, d in zip(kernel.shape, dilations, strict=False)]
    pads = []
    for axis, (low, _) in enumerate(lax.padtype_to_pads(x.shape[1:-1], reach, strides, padding)):
        before = reach[axis] - 1 - low
        spread = (upstream.shape[1 + axis] - 1) * strides[axis] + 1
        pads.append((before, x.shape[1 + axis] + reach[axis] - 1 - spread - before))
    mirrored = lax.rev(kernel, range(rank)).swapaxes(-1, -2)
    gradient = lax.conv_general_dilated(
        upstream, mirrored, (1,) * rank, pads, strides, dilations, _axes(rank)
    )
    _, in_kernel = jax.vjp(
        lambda kernel: _convolution(x, kernel, strides, padding, dilations), kernel
    )
    return gradient, in_kernel(upstream)[0]


convolution.defvjp(_forward, _backward)
