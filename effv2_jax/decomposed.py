"""Convolutions and batch norm as what XLA's CPU backend runs fast, gradients included.

That backend runs a grouped convolution one channel at a time. It fuses whatever made an operand into every term that
reads it, so that nine shifted products would compute nine times what came before: hence the barriers, which do nothing
but keep an array as it is.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

Array = jax.Array
# The convolutions that are left are faster by Eigen than by YNNPACK, which takes them by default.
_OPTIONS = {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT,LIBRARY_FUSION_TYPE_REDUCE"}
Pads = tuple[tuple[int, int], tuple[int, int]]  # (before, after) of height and of width
_ROWS_AND_COLUMNS = (1, 2)


def compiler_options(platform: str) -> dict[str, Any]:
    """Of `jax.jit`, for programs of this network on 'cpu', 'tpu', ...; none where the compiler does not know them."""
    return _known_options() if platform == "cpu" else {}


@functools.cache
def _known_options() -> dict[str, Any]:
    try:
        device = jax.local_devices(backend="cpu")[0]
        jax.jit(jnp.negative, compiler_options=_OPTIONS).lower(jax.device_put(1.0, device)).compile()
    except Exception:  # of another version's compiler, of no class of its own
        return {}
    return dict(_OPTIONS)


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


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def normalize_groups(
    x_GxNxHxWxC: Array, scale_C: Array, bias_C: Array, epsilon: float, activate: bool, dtype: Any
) -> tuple[Array, Array, Array]:
    """(batch norm of each group with SiLU after it where `activate`, mean [G, C], variance [G, C]).

    What the backward pass needs of SiLU is computed again from x, which is cheaper than to keep it; no gradient flows
    through the two statistics.
    """
    return _normalize_forward(x_GxNxHxWxC, scale_C, bias_C, epsilon, activate, dtype)[0]


def group_moments(x_GxNxHxWxC: Array) -> tuple[Array, Array]:
    """Mean and variance [G, C] in float32.

    One pass over x, as the released TPU batch norm does; rounding may leave a tiny negative number.
    """
    x = x_GxNxHxWxC.astype(jnp.float32)
    mean = x.mean((1, 2, 3))
    return mean, jnp.maximum(lax.square(x).mean((1, 2, 3)) - lax.square(mean), 0)


def _spread(values_GxC: Array) -> Array:
    return values_GxC[:, None, None, None]


def _normalize_forward(
    x: Array, scale: Array, bias: Array, epsilon: float, activate: bool, dtype: Any
) -> tuple[tuple[Array, Array, Array], tuple[Array, ...]]:
    x = lax.optimization_barrier(x)
    mean, var = group_moments(x)
    inverse = lax.rsqrt(var + epsilon)
    z = x.astype(jnp.float32) * _spread(scale * inverse) + _spread(bias - mean * scale * inverse)
    y = (jax.nn.silu(z) if activate else z).astype(dtype)
    return (y, mean, var), (x, scale, bias, mean, inverse)


def _normalize_backward(
    epsilon: float, activate: bool, dtype: Any, saved: tuple[Array, ...], cotangents: tuple[Array, Array, Array]
) -> tuple[Array, Array, Array]:
    x_, scale, bias, mean, inverse = saved
    x, dz = x_.astype(jnp.float32), cotangents[0].astype(jnp.float32)
    factor = scale * inverse
    if activate:
        z = x * _spread(factor) + _spread(bias - mean * factor)
        gate = jax.nn.sigmoid(z)
        dz = lax.optimization_barrier(dz * gate * (1 + z * (1 - gate)))
    dbias = dz.sum((1, 2, 3))
    dscale = ((dz * x).sum((1, 2, 3)) - mean * dbias) * inverse
    # dx = factor * (dz - mean of dz - (x - mean) * inverse * mean of dz * (x - mean) * inverse)
    count = x.size / mean.size
    slope = -factor * inverse * dscale / count
    offset = -factor * dbias / count - slope * mean
    dx = dz * _spread(factor) + x * _spread(slope) + _spread(offset)
    return lax.optimization_barrier(dx.astype(x_.dtype)), dscale.sum(0), dbias.sum(0)


normalize_groups.defvjp(_normalize_forward, _normalize_backward)
