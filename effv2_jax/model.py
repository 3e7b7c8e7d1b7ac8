"""EfficientNet and EfficientNetV2 as one Linen module, and the normalisation of its input.

model = EfficientNet(get_architecture("efficientnetv2-b0"), num_classes=1000)
variables = model.init(key, jnp.zeros((1, 224, 224, 3)))
logits_BxK = model.apply(variables, normalize(images_uint8, "imagenet"))
"""

import functools
import itertools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from effv2_jax.architecture import Architecture, Block
from effv2_jax.layers import BatchNorm, Conv, Residual, branch_factors

Array = jax.Array

# (offset, scale) a channel: x is normalised to (x - offset) / scale. 'v2' and 'unit': google/automl preprocessing.py;
# 'imagenet': preprocess_legacy.py, ImageNet's mean and standard deviation.
NORMALIZATIONS = {
    "v2": ((128.0,) * 3, (128.0,) * 3),
    "unit": ((127.5,) * 3, (127.5,) * 3),
    "imagenet": ((0.485 * 255, 0.456 * 255, 0.406 * 255), (0.229 * 255, 0.224 * 255, 0.225 * 255)),
}


def normalize(images_BxHxWx3: Array, normalization: str, dtype: Any = jnp.float32) -> Array:
    """uint8 pixels to the network's input, [B, H, W, 3] of `dtype`; `normalization` is a key of NORMALIZATIONS."""
    offset, scale = (jnp.array(values, jnp.float32) for values in NORMALIZATIONS[normalization])
    return ((images_BxHxWx3.astype(jnp.float32) - offset) / scale).astype(dtype)


def initial_classifier(key: Array, shape: tuple[int, int], dtype: Any = jnp.float32) -> Array:
    """U(-r, r) with r = 1 / sqrt(classes), google/automl effnetv2_model.py `dense_kernel_initializer`."""
    limit = shape[1] ** -0.5
    return jax.random.uniform(key, shape, dtype, -limit, limit)


def identical_runs(blocks: Sequence[Block]) -> list[range]:
    """The indices of all blocks in order, one range for each run of consecutive equal blocks with a residual."""
    runs, end = [], 0
    for block, run in itertools.groupby(blocks):
        start, end = end, end + len(list(run))
        runs += [range(start, end)] if block.has_residual else [range(i, i + 1) for i in range(start, end)]
    return runs


class EfficientNet(nn.Module):
    """The network of an `Architecture`: normalised images [B, H, W, 3] -> float32 logits [B, num_classes].

    With num_classes 0 the result is the pooled features [B, head_filters]. Training draws from the random stream
    'dropout' and gives 'group_stats' (see `layers.BatchNorm`). Where 'endpoints' is mutable it receives `stem`,
    `reduction_1` to `_5` (the last output of each resolution), `head` [B, H/32, W/32, head_filters] and `pooled` [B,
    head_filters].

    `scan_blocks` runs consecutive identical blocks as one loop: a smaller program that computes the same from the same
    variables.
    """

    architecture: Architecture
    num_classes: int
    dropout_rate: float = 0.0
    survival_probability: float = 1.0
    batch_norm_group_size: int = 0
    batch_norm_epsilon: float = 1e-3
    dtype: Any = jnp.float32
    remat: bool = False
    lowering: str = "native"
    scan_blocks: bool = False

    @nn.compact
    def __call__(self, x_BxHxWxC: Array, train: bool = False) -> Array:
        blocks = self.architecture.blocks
        conv = functools.partial(Conv, dtype=self.dtype, lowering=self.lowering)
        norm = functools.partial(BatchNorm, self.batch_norm_group_size, self.batch_norm_epsilon, self.dtype)
        residual = functools.partial(
            nn.remat(Residual, static_argnums=(2,)) if self.remat else Residual,
            group_size=self.batch_norm_group_size,
            epsilon=self.batch_norm_epsilon,
            dtype=self.dtype,
            lowering=self.lowering,
        )
        scan = self.scan_blocks and not self.is_initializing()  # the loop needs the blocks' variables

        x = conv(self.architecture.stem_filters, kernel_size=3, stride=2, name="stem_conv")(x_BxHxWxC)
        x = nn.silu(norm(name="stem_bn")(x, train))
        self.endpoint("stem", x)
        factors_NxB = None
        if train and self.survival_probability < 1:
            # Linear in the index over all blocks, those without a residual included.
            survival_N = 1 - (1 - self.survival_probability) * jnp.arange(len(blocks)) / len(blocks)
            factors_NxB = branch_factors(self.make_rng("dropout"), survival_N, len(x))
        reduction = 1
        for run in identical_runs(blocks) if scan else [range(i, i + 1) for i in range(len(blocks))]:
            block, factors_RxB = blocks[run.start], None if factors_NxB is None else factors_NxB[run.start : run.stop]
            if len(run) > 1:
                x = self.scanned(residual(block, parent=None), run, x, train, factors_RxB)
            else:
                factors_B = None if factors_RxB is None else factors_RxB[0]
                x = residual(block, name=f"block_{run.start}")(x, train, factors_B)
            # A run has one resolution, so that none of these lies inside it.
            if run.stop == len(blocks) or blocks[run.stop].stride > 1:
                self.endpoint(f"reduction_{reduction}", x)
                reduction += 1
        x = conv(self.architecture.head_filters, name="head_conv")(x)
        x = nn.silu(norm(name="head_bn")(x, train))
        self.endpoint("head", x)
        pooled = x.mean((1, 2), dtype=jnp.float32)
        self.endpoint("pooled", pooled)
        if not self.num_classes:
            return pooled
        dropped = nn.Dropout(self.dropout_rate)(pooled, deterministic=not train)
        return nn.Dense(self.num_classes, kernel_init=initial_classifier, name="classifier")(dropped)

    def scanned(self, residual: Residual, run: range, x: Array, train: bool, factors_RxB: Array | None) -> Array:
        """The blocks of a run as one `lax.scan` of `residual` over their stacked variables, which stay `block_i`."""
        names = [f"block_{index}" for index in run]
        stacked = {
            kind: jax.tree.map(lambda *leaves: jnp.stack(leaves), *(self.get_variable(kind, name) for name in names))
            for kind in ("params", "batch_stats")
        }
        mutable = ["group_stats"] if self.is_mutable_collection("group_stats") else []

        def step(x: Array, inputs: tuple[Any, Array | None]) -> tuple[Array, Any]:
            variables, factors_B = inputs
            return residual.apply(variables, x, train, factors_B, mutable=mutable)

        x, updates = jax.lax.scan(step, x, (stacked, factors_RxB))
        for kind, values in updates.items():
            for index, name in enumerate(names):
                self.put_variable(kind, name, jax.tree.map(lambda leaf, index=index: leaf[index], values))
        return x

    def endpoint(self, name: str, x: Array) -> None:
        if not self.is_initializing():  # init gives parameters and statistics alone
            self.sow("endpoints", name, x)
