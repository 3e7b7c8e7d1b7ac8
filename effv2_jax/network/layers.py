"""The layers of EfficientNet: convolution, grouped batch norm, squeeze-excite, MBConv and Fused-MBConv.

Numerics follow google/automl `efficientnetv2/effnetv2_model.py` at 6a54c87. Parameters and statistics are float32;
`dtype` is the type of activations and matrix products. Shapes: B examples, H and W pixels, C channels, G batch-norm
groups.
"""

import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from effv2_jax.network.architecture import Block
from effv2_jax.network.cpu_kernels import (
    convolve,
    depthwise_convolution,
    group_moments,
    normalize_groups,
    pointwise_convolution,
    spatial_convolution,
)
from effv2_jax.network.types import PyTree

Array = jax.Array
Dtype = Any


def same_padding(size: int, kernel_size: int, stride: int) -> tuple[int, int]:
    """TensorFlow's 'SAME' padding (before, after) of one axis."""
    total = max((math.ceil(size / stride) - 1) * stride + kernel_size - size, 0)
    return total // 2, total - total // 2


def pads_of(size: int, kernel_size: int, stride: int, padding: str) -> tuple[int, int]:
    """Padding (before, after) of one axis: 'same' as TensorFlow, 'symmetric' as torchvision; equal output sizes."""
    return (kernel_size // 2, kernel_size // 2) if padding == "symmetric" else same_padding(size, kernel_size, stride)


def convolution(
    x_BxHxWxC: Array, kernel: Array, stride: int, depthwise: bool, lowering: str, padding: str = "same"
) -> Array:
    """A convolution as one XLA operation ('native'), or in the form that XLA's CPU backend runs fast ('decomposed').

    'product' is a plain matrix product, for 1 x 1 kernels of stride 1.
    """
    size = kernel.shape[0]
    if lowering == "product":
        return jnp.einsum("bhwi,io->bhwo", x_BxHxWxC, kernel[0, 0])
    height, width = (pads_of(length, size, stride, padding) for length in x_BxHxWxC.shape[1:3])
    if lowering == "native" or size < stride:
        groups = x_BxHxWxC.shape[-1] if depthwise else 1
        return convolve(x_BxHxWxC, kernel, stride, (height, width), groups=groups)
    if depthwise:
        return depthwise_convolution(x_BxHxWxC, kernel[:, :, 0], stride, (height, width))
    if size == 1:
        return pointwise_convolution(x_BxHxWxC, kernel[0, 0])
    return spatial_convolution(x_BxHxWxC, kernel, stride, (height, width))


class Conv(nn.Module):
    """A padded convolution with a square kernel: [B, H, W, C] -> [B, ceil(H/stride), ceil(W/stride), features].

    The kernel is drawn from an untruncated normal of variance 2 / fan_out. The fan_out of a depthwise kernel is k * k,
    as in TensorFlow's (k, k, C, 1) layout; Flax's variance_scaling would count the channels too.
    """

    features: int
    kernel_size: int = 1
    stride: int = 1
    depthwise: bool = False
    use_bias: bool = False
    dtype: Dtype = jnp.float32
    lowering: str = "native"
    padding: str = "same"

    @nn.compact
    def __call__(self, x_BxHxWxC: Array) -> Array:
        size = self.kernel_size
        fan_out = size * size * (1 if self.depthwise else self.features)
        in_features = 1 if self.depthwise else x_BxHxWxC.shape[-1]
        kernel = self.param(
            "kernel",
            nn.initializers.normal(math.sqrt(2 / fan_out)),
            (size, size, in_features, self.features),
            jnp.float32,
        )
        y = convolution(
            x_BxHxWxC.astype(self.dtype),
            kernel.astype(self.dtype),
            self.stride,
            self.depthwise,
            self.lowering,
            self.padding,
        )
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
            y += bias.astype(self.dtype)
        return y


class BatchNorm(nn.Module):
    """Batch norm over groups of `group_size` consecutive examples (0: over the whole batch), statistics in float32.

    Groups consist of examples, not of devices: the result is the same on any number of devices, and a group within one
    device needs no communication. `activate` appends SiLU. In training, the statistics of the groups go to the
    collection 'group_stats' ([G, C] each); `update_batch_stats` then folds those of all layers into the running ones.
    """

    group_size: int = 0
    epsilon: float = 1e-3
    dtype: Dtype = jnp.float32
    lowering: str = "native"

    @nn.compact
    def __call__(self, x_BxHxWxC: Array, train: bool, activate: bool = False) -> Array:
        batch, height, width, channels = x_BxHxWxC.shape
        scale = self.param("scale", nn.initializers.ones, (channels,), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (channels,), jnp.float32)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (channels,), jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, (channels,), jnp.float32)
        if not train:
            factor = scale * lax.rsqrt(running_var.value + self.epsilon)
            shift = bias - running_mean.value * factor
            y = (x_BxHxWxC * factor + shift).astype(self.dtype)
            return nn.silu(y) if activate else y
        size = self.group_size or batch
        if batch % size:
            raise ValueError(f"batch norm groups of {size} examples do not divide a batch of {batch}")
        groups = (batch // size, size, height, width, channels)
        if self.lowering == "decomposed":
            x = x_BxHxWxC.reshape(groups)
            y, mean_GxC, var_GxC = normalize_groups(x, scale, bias, self.epsilon, activate, self.dtype)
            y = y.reshape(x_BxHxWxC.shape)
        else:
            x = x_BxHxWxC.astype(jnp.float32).reshape(groups)
            mean_GxC, var_GxC = group_moments(x)
            factor = scale * lax.rsqrt(var_GxC + self.epsilon)
            shift = bias - mean_GxC * factor
            y = x * factor[:, None, None, None] + shift[:, None, None, None]
            y = y.reshape(x_BxHxWxC.shape).astype(self.dtype)
            y = nn.silu(y) if activate else y
        if self.is_mutable_collection("group_stats"):
            self.variable("group_stats", "mean", lambda: mean_GxC).value = mean_GxC
            self.variable("group_stats", "var", lambda: var_GxC).value = var_GxC
        return y


def update_batch_stats(batch_stats: PyTree, group_stats: PyTree, momentum: float) -> PyTree:
    """running = momentum * running + (1 - momentum) * mean over groups, for every batch norm of a model.

    The statistics of all layers are averaged as one concatenated [G, sum of C] array, so that devices exchange them
    once per step and not once per layer.
    """
    leaves, structure = jax.tree.flatten(batch_stats)
    means = jnp.concatenate(jax.tree.leaves(group_stats), axis=1).mean(0)
    ends = list(itertools.accumulate(leaf.size for leaf in leaves))[:-1]
    return jax.tree.unflatten(
        structure,
        [momentum * old + (1 - momentum) * new for old, new in zip(leaves, jnp.split(means, ends), strict=True)],
    )


class SqueezeExcite(nn.Module):
    """Scales channels by gates computed from their means: x * sigmoid(expand(silu(reduce(mean(x)))))."""

    reduced_features: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x_BxHxWxC: Array) -> Array:
        # On every platform both convolutions are products of a [B, C] matrix.
        conv = {"use_bias": True, "dtype": self.dtype, "lowering": "product"}
        pooled = x_BxHxWxC.mean((1, 2), keepdims=True, dtype=jnp.float32)
        hidden = nn.silu(Conv(self.reduced_features, name="reduce", **conv)(pooled))
        gate = nn.sigmoid(Conv(x_BxHxWxC.shape[-1], name="expand", **conv)(hidden))
        return x_BxHxWxC * gate


class Residual(nn.Module):
    """One MBConv or Fused-MBConv block with its residual connection and stochastic depth.

    MBConv: [1x1 expand, BN, silu], depthwise, BN, silu, squeeze-excite, 1x1 project, BN. Fused: k x k expand, BN, silu,
    [squeeze-excite], 1x1 project, BN; with expand_ratio 1 a single k x k convolution, BN, silu. An MBConv with
    expand_ratio 1 has no expansion. The width of squeeze-excite is a fraction of the block's input filters, not of the
    expanded ones. With batch_norm_frozen, batch norm works in training as it does in evaluation.
    """

    block: Block
    survival_probability: float = 1.0
    group_size: int = 0
    epsilon: float = 1e-3
    dtype: Dtype = jnp.float32
    lowering: str = "native"
    padding: str = "same"
    batch_norm_frozen: bool = False

    @nn.compact
    def __call__(self, x_BxHxWxC: Array, train: bool) -> Array:
        block = self.block
        train_norm = train and not self.batch_norm_frozen

        def conv_bn(name: str, x: Array, features: int, act: bool = True, **kwargs: Any) -> Array:
            conv = {"dtype": self.dtype, "lowering": self.lowering, "padding": self.padding}
            x = Conv(features, name=f"{name}_conv", **conv, **kwargs)(x)
            norm = BatchNorm(self.group_size, self.epsilon, self.dtype, self.lowering, name=f"{name}_bn")
            return norm(x, train_norm, activate=act)

        x = x_BxHxWxC
        spatial: dict[str, Any] = {"kernel_size": block.kernel_size, "stride": block.stride}
        if block.kind == "mbconv":
            if block.expand_ratio != 1:
                x = conv_bn("expand", x, block.expanded_filters)
            x = conv_bn("depthwise", x, block.expanded_filters, depthwise=True, **spatial)
        elif block.expand_ratio != 1:
            x = conv_bn("expand", x, block.expanded_filters, **spatial)
        if block.se_filters:
            x = SqueezeExcite(block.se_filters, self.dtype, name="squeeze_excite")(x)
        if block.kind == "fused" and block.expand_ratio == 1:
            x = conv_bn("project", x, block.output_filters, **spatial)
        else:
            x = conv_bn("project", x, block.output_filters, act=False)
        if block.has_residual:
            x = x_BxHxWxC + self.stochastic_depth(x, train)
        return x

    def stochastic_depth(self, x_BxHxWxC: Array, train: bool) -> Array:
        """Drops the branch of a whole example with probability 1 - survival, and rescales the kept ones."""
        survival = self.survival_probability
        if not train or survival == 1.0:
            return x_BxHxWxC
        keep_B = jax.random.bernoulli(self.make_rng("dropout"), survival, x_BxHxWxC.shape[:1])
        return x_BxHxWxC * (keep_B / survival).astype(x_BxHxWxC.dtype)[:, None, None, None]
