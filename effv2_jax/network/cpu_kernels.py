"""Convolutions and batch norm in forms that XLA's CPU backend runs fast, with their gradients.

The backend runs a grouped convolution one channel at a time. In the gradient of a strided convolution it multiplies by
the zeros between the pixels. It fuses the computation of an operand into each of its readers, and so repeats it for
each reader: a depthwise convolution for every sum that batch norm takes of it, SiLU pixel by pixel in the order of a
transposed copy. It removes `lax.optimization_barrier` before it fuses, but a function marked as not inlineable stays
separate.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.xla_metadata import set_xla_metadata

Array = jax.Array
# The remaining convolutions run faster with Eigen than with YNNPACK, the default.
_OPTIONS = {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT,LIBRARY_FUSION_TYPE_REDUCE"}
Pads = tuple[tuple[int, int], tuple[int, int]]  # (before, after) of height and of width
_ROWS_AND_COLUMNS = (1, 2)


def compiler_options(platform: str) -> dict[str, Any]:
    """Options of `jax.jit` for programs of this network on 'cpu', 'tpu', ...; {} if the compiler rejects them."""
    return _known_options() if platform == "cpu" else {}


@functools.cache
def _known_options() -> dict[str, Any]:
    try:
        device = jax.local_devices(backend="cpu")[0]
        jax.jit(jnp.negative, compiler_options=_OPTIONS).lower(jax.device_put(1.0, device)).compile()
    except Exception:  # another version's compiler does not know them; the error has no class of its own
        return {}
    return dict(_OPTIONS)


def no_fusion(function: Callable[..., Array]) -> Callable[..., Array]:
    """The same function of arrays, kept out of XLA's fusions. Other arguments are keywords and hashable."""

    def call(*arrays: Array, **static: Any) -> Array:
        with set_xla_metadata(inlineable="false"):
            return jax.jit(function, static_argnames=tuple(static))(*arrays, **static)

    return call


@no_fusion
def _transposed(x: Array, *, order: tuple[int, ...]) -> Array:
    return x.transpose(order)


@jax.custom_vjp
def pointwise_convolution(x_BxHxWxI: Array, kernel_IxO: Array) -> Array:
    """A 1 x 1 convolution of stride 1, as a matrix product."""
    return jnp.einsum("bhwi,io->bhwo", x_BxHxWxI, kernel_IxO)


def _pointwise_forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return pointwise_convolution(x, kernel), (x, kernel)


def _pointwise_backward(saved: tuple[Array, Array], dy_BxHxWxO: Array) -> tuple[Array, Array]:
    x_BxHxWxI, kernel = saved
    dx = jnp.einsum("bhwo,io->bhwi", dy_BxHxWxO, kernel)
    x_NxI, dy_NxO = (pixels.reshape(-1, pixels.shape[-1]) for pixels in (x_BxHxWxI, dy_BxHxWxO))
    # A product over all pixels needs its left operand transposed, so the narrower operand goes left.
    if kernel.shape[0] <= kernel.shape[1]:
        return dx, _transposed(x_NxI, order=(1, 0)) @ dy_NxO
    # Without the barrier XLA makes it one product of two transposed operands, which is slow.
    return dx, lax.optimization_barrier(_transposed(dy_NxO, order=(1, 0)) @ x_NxI).T


pointwise_convolution.defvjp(_pointwise_forward, _pointwise_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def spatial_convolution(x_BxHxWxI: Array, kernel_KxKxIxO: Array, stride: int, pads: Pads) -> Array:
    """A K x K convolution of the padded input."""
    return convolve(x_BxHxWxI, kernel_KxKxIxO, stride, pads)


def convolve(
    x_BxHxWxI: Array, kernel_KxKxIxO: Array, stride: int, pads: Pads, dilation: int = 1, groups: int = 1
) -> Array:
    """One XLA operation, `conv_general_dilated`, with JAX's own gradients."""
    return lax.conv_general_dilated(
        x_BxHxWxI,
        kernel_KxKxIxO,
        (stride, stride),
        pads,
        rhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def _spatial_forward(x: Array, kernel: Array, stride: int, pads: Pads) -> tuple[Array, tuple[Array, Array]]:
    return convolve(x, kernel, stride, pads), (x, kernel)


def _spatial_backward(stride: int, pads: Pads, saved: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
    x, kernel = saved
    dx = _spatial_input_gradient(x.shape, kernel, stride, pads, dy)
    (top, bottom), (left, right) = pads
    size, _, inputs, outputs = kernel.shape
    # The gradient of the kernel, a sum over pixels and examples, is a convolution of one operand, its channels in the
    # place of examples, with the other operand.
    channels_first, examples_third = (3, 1, 2, 0), (1, 2, 0, 3)
    if stride == 1 and outputs < inputs:  # the operand under the moving window is read K * K times: the narrower one
        moved, still = _transposed(dy, order=channels_first), _transposed(x, order=examples_third)
        mirrored = ((size - 1 - top, size - 1 - bottom), (size - 1 - left, size - 1 - right))
        return dx, convolve(moved, still, 1, mirrored)[:, ::-1, ::-1].transpose(1, 2, 3, 0)
    moved, still = _transposed(x, order=channels_first), _transposed(dy, order=examples_third)
    # The last rows and columns, which no stride reaches, are cut off.
    pad_below, pad_right = (
        (count - 1) * stride + size - length - before
        for count, length, (before, _) in zip(dy.shape[1:3], x.shape[1:3], pads, strict=True)
    )
    return dx, convolve(moved, still, 1, ((top, pad_below), (left, pad_right)), stride).transpose(1, 2, 0, 3)


def _spatial_input_gradient(shape: tuple[int, ...], kernel: Array, stride: int, pads: Pads, dy_BxHxWxO: Array) -> Array:
    """One convolution of dy for all stride * stride phases of the pixels; each phase has its own subset of the taps."""
    batch, height, width, inputs = shape
    size, outputs = len(kernel), kernel.shape[-1]
    taps = -(-size // stride)
    missing = (0, taps * stride - size)
    phases = jnp.pad(kernel, (missing, missing, (0, 0), (0, 0)))
    phases = phases.reshape(taps, stride, taps, stride, inputs, outputs)[::-1, :, ::-1].transpose(0, 2, 5, 1, 3, 4)
    (top, _), (left, _) = pads
    rows, columns = -(-(height + top) // stride), -(-(width + left) // stride)
    padding = ((taps - 1, rows - dy_BxHxWxO.shape[1]), (taps - 1, columns - dy_BxHxWxO.shape[2]))
    dx = convolve(dy_BxHxWxO, phases.reshape(taps, taps, outputs, -1), 1, padding)
    dx = dx.reshape(batch, rows, columns, stride, stride, inputs).transpose(0, 1, 3, 2, 4, 5)
    dx = dx.reshape(batch, rows * stride, columns * stride, inputs)
    return dx[:, top : top + height, left : left + width]


spatial_convolution.defvjp(_spatial_forward, _spatial_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def depthwise_convolution(x_BxHxWxC: Array, kernel_KxKxC: Array, stride: int, pads: Pads) -> Array:
    """A depthwise convolution of the padded input, as K * K shifted products."""
    return _sum_of_shifts(_pad(x_BxHxWxC, pads), kernel_KxKxC, stride=stride)


def _pad(x: Array, pads: Pads) -> Array:
    # With the barrier XLA pads in the same pass that computes x.
    return lax.optimization_barrier(jnp.pad(x, ((0, 0), *pads, (0, 0))))


def _shifts(padded: Array, size: int, stride: int) -> list[list[Array]]:
    """[i][j]: the pixels that element (i, j) of a kernel is multiplied with."""
    height, width = ((length - size) // stride + 1 for length in padded.shape[1:3])
    rows, columns = (
        [slice(first, first + (count - 1) * stride + 1, stride) for first in range(size)] for count in (height, width)
    )
    return [[padded[:, row, column] for column in columns] for row in rows]


def _sum_of_shifts(padded: Array, kernel: Array, *, stride: int) -> Array:
    size = len(kernel)
    shifts = _shifts(padded, size, stride)
    terms = [shifts[i][j] * kernel[i, j] for i in range(size) for j in range(size)]
    return sum(terms[1:], terms[0])


def _depthwise_forward(x: Array, kernel: Array, stride: int, pads: Pads) -> tuple[Array, tuple[Array, Array]]:
    padded = _pad(x, pads)
    return no_fusion(_sum_of_shifts)(padded, kernel, stride=stride), (padded, kernel)


def _depthwise_backward(stride: int, pads: Pads, saved: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
    padded, kernel = saved
    size = len(kernel)
    # dx: the mirrored kernel slides over dy, which has stride - 1 zeros between its pixels.
    padding = []
    for length, count, (before, after) in zip(padded.shape[1:3], dy.shape[1:3], pads, strict=True):
        left = size - 1 - before
        padding.append((left, length - before - after + size - 1 - left - ((count - 1) * stride + 1), stride - 1))
    dilated = lax.pad(dy, jnp.zeros((), dy.dtype), ((0, 0, 0), *padding, (0, 0, 0)))
    dx = no_fusion(_sum_of_shifts)(dilated, kernel[::-1, ::-1], stride=1)
    sums_BxKxKxC = _sums_of_products(padded, dy, size=size, stride=stride)
    return dx, sums_BxKxKxC.sum(0).astype(kernel.dtype)  # outside, so that devices exchange it with all other sums


@no_fusion
def _sums_of_products(padded: Array, dy: Array, *, size: int, stride: int) -> Array:
    """[B, K, K, C] in float32: all sums over pixels in one pass over the operands, instead of one pass per sum."""
    products = [(shift * dy).astype(jnp.float32) for row in _shifts(padded, size, stride) for shift in row]
    zeros = (jnp.zeros((), jnp.float32),) * len(products)
    sums_BxC = lax.reduce(tuple(products), zeros, lambda a, b: tuple(map(jnp.add, a, b)), _ROWS_AND_COLUMNS)
    return jnp.stack(sums_BxC, axis=1).reshape(len(dy), size, size, -1)


depthwise_convolution.defvjp(_depthwise_forward, _depthwise_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def normalize_groups(
    x_GxNxHxWxC: Array, scale_C: Array, bias_C: Array, epsilon: float, activate: bool, dtype: Any
) -> tuple[Array, Array, Array]:
    """(batch norm of each group, followed by SiLU if `activate`; mean [G, C]; variance [G, C]).

    The backward pass recomputes SiLU from x, which is cheaper than storing it. No gradient flows through the two
    statistics.
    """
    return _normalize_forward(x_GxNxHxWxC, scale_C, bias_C, epsilon, activate, dtype)[0]


def group_moments(x_GxNxHxWxC: Array) -> tuple[Array, Array]:
    """Mean and variance [G, C] in float32.

    One pass over x, as the released TPU batch norm does. The difference may round to a tiny negative number, hence the
    maximum with 0.
    """
    x = x_GxNxHxWxC.astype(jnp.float32)
    mean = x.mean((1, 2, 3))
    return mean, jnp.maximum(lax.square(x).mean((1, 2, 3)) - lax.square(mean), 0)


def _per_channel(values_GxC: Array) -> Array:
    return values_GxC[:, None, None, None]


def _normalize_forward(
    x: Array, scale: Array, bias: Array, epsilon: float, activate: bool, dtype: Any
) -> tuple[tuple[Array, Array, Array], tuple[Array, ...]]:
    mean, var = group_moments(x)
    inverse = lax.rsqrt(var + epsilon)
    z = x.astype(jnp.float32) * _per_channel(scale * inverse) + _per_channel(bias - mean * scale * inverse)
    y = (jax.nn.silu(z) if activate else z).astype(dtype)
    return (y, mean, var), (x, scale, bias, mean, inverse)


def _normalize_backward(
    epsilon: float, activate: bool, dtype: Any, saved: tuple[Array, ...], cotangents: tuple[Array, Array, Array]
) -> tuple[Array, Array, Array]:
    saved_x, scale, bias, mean, inverse = saved
    x, dz = saved_x.astype(jnp.float32), cotangents[0].astype(jnp.float32)
    factor = scale * inverse
    if activate:
        z = x * _per_channel(factor) + _per_channel(bias - mean * factor)
        gate = jax.nn.sigmoid(z)
        dz = dz * gate * (1 + z * (1 - gate))
    dbias = dz.sum((1, 2, 3))
    dscale = ((dz * x).sum((1, 2, 3)) - mean * dbias) * inverse
    # dx = factor * (dz - mean of dz - (x - mean) * inverse * mean of dz * (x - mean) * inverse)
    count = x.size / mean.size
    slope = -factor * inverse * dscale / count
    offset = -factor * dbias / count - slope * mean
    dx = dz * _per_channel(factor) + x * _per_channel(slope) + _per_channel(offset)
    return dx.astype(saved_x.dtype), dscale.sum(0), dbias.sum(0)


normalize_groups.defvjp(_normalize_forward, _normalize_backward)
