"""Convolutions as what XLA's CPU backend runs fast, gradients included.

That backend runs a grouped convolution one channel at a time. It fuses whatever made an operand into every term that
reads it, so that nine shifted products would compute nine times what came before: hence the barriers, which do nothing
but keep an array as it is.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

Array = jax.Array
Pads = tuple[tuple[int, int], tuple[int, int]]  # (before, after) of height and of width
_ROWS_AND_COLUMNS = (1, 2)


@jax.custom_vjp
def pointwise_convolution(x_BxHxWxI: Array, kernel_IxO: Array) -> Array:
    """A 1 x 1 convolution of stride 1, as a matrix product."""
    return jnp.einsum("bhwi,io->bhwo", x_BxHxWxI, kernel_IxO)


def _pointwise_forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return pointwise_convolution(x, kernel), (x, kernel)


def _pointwise_backward(saved: tuple[Array, Array], dy_BxHxWxO: Array) -> tuple[Array, Array]:
    x, kernel = saved
    dx = jnp.einsum("bhwo,io->bhwi", dy_BxHxWxO, kernel)
    # The left operand of a product over all pixels is transposed first: let it be the narrower one.
    if kernel.shape[0] <= kernel.shape[1]:
        return dx, jnp.einsum("bhwi,bhwo->io", lax.optimization_barrier(x), dy_BxHxWxO)
    return dx, jnp.einsum("bhwo,bhwi->oi", lax.optimization_barrier(dy_BxHxWxO), x).T


pointwise_convolution.defvjp(_pointwise_forward, _pointwise_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def depthwise_convolution(x_BxHxWxC: Array, kernel_KxKxC: Array, stride: int, pads: Pads) -> Array:
    """A depthwise convolution of the padded input, as K * K shifted products."""
    padded = jnp.pad(lax.optimization_barrier(x_BxHxWxC), ((0, 0), *pads, (0, 0)))
    return _sum_of_shifts(lax.optimization_barrier(padded), kernel_KxKxC, stride)


def _shifts(padded: Array, size: int, stride: int) -> list[list[Array]]:
    """[i][j]: the pixels that element (i, j) of a kernel meets."""
    height, width = ((length - size) // stride + 1 for length in padded.shape[1:3])
    rows, columns = (
        [slice(first, first + (count - 1) * stride + 1, stride) for first in range(size)] for count in (height, width)
    )
    return [[padded[:, row, column] for column in columns] for row in rows]


def _sum_of_shifts(padded: Array, kernel: Array, stride: int) -> Array:
    size = len(kernel)
    shifts = _shifts(padded, size, stride)
    terms = [shifts[i][j] * kernel[i, j] for i in range(size) for j in range(size)]
    return sum(terms[1:], terms[0])


def _depthwise_forward(x: Array, kernel: Array, stride: int, pads: Pads) -> tuple[Array, tuple[Array, Array]]:
    return depthwise_convolution(x, kernel, stride, pads), (x, kernel)


def _depthwise_backward(stride: int, pads: Pads, saved: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
    x, kernel = saved
    size = len(kernel)
    x, dy = lax.optimization_barrier((x, dy))
    # dx: dy, with stride - 1 zeros between its pixels, meets the mirrored kernel.
    around = []
    for length, count, (before, _) in zip(x.shape[1:3], dy.shape[1:3], pads, strict=True):
        left = size - 1 - before
        around.append((left, length + size - 1 - left - ((count - 1) * stride + 1), stride - 1))
    spread = lax.pad(dy, jnp.zeros((), dy.dtype), ((0, 0, 0), *around, (0, 0, 0)))
    dx = _sum_of_shifts(lax.optimization_barrier(spread), kernel[::-1, ::-1], 1)
    # dkernel: all sums in one pass over the pixels, which XLA would read once for each.
    padded = lax.optimization_barrier(jnp.pad(x, ((0, 0), *pads, (0, 0))))
    products = [(shift * dy).astype(jnp.float32) for row in _shifts(padded, size, stride) for shift in row]
    zeros = (jnp.zeros((), jnp.float32),) * len(products)
    sums_BxC = lax.reduce(tuple(products), zeros, lambda a, b: tuple(map(jnp.add, a, b)), _ROWS_AND_COLUMNS)
    dkernel = jnp.stack([sums.sum(0) for sums in sums_BxC]).reshape(kernel.shape)
    return dx, dkernel.astype(kernel.dtype)


depthwise_convolution.defvjp(_depthwise_forward, _depthwise_backward)
