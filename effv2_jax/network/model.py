"""EfficientNet and EfficientNetV2 as one Linen module, and the normalisation of its input.

model = EfficientNet(get_architecture("efficientnetv2-b0"), num_classes=1000)
variables = model.init(key, jnp.zeros((1, 224, 224, 3)))
logits_BxK = model.apply(variables, normalize(images_uint8, "imagenet"))
"""

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn
from ml_collections import ConfigDict

from effv2_jax.curriculum import Stage
from effv2_jax.network.architecture import Architecture, get_architecture
from effv2_jax.network.layers import BatchNorm, Conv, Dtype, Residual

Array = jax.Array

# (offset, scale) per channel: x is normalised to (x - offset) / scale. 'v2' and 'unit': google/automl preprocessing.py;
# 'imagenet': preprocess_legacy.py, ImageNet's mean and standard deviation.
NORMALIZATIONS = {
    "v2": ((128.0,) * 3, (128.0,) * 3),
    "unit": ((127.5,) * 3, (127.5,) * 3),
    "imagenet": ((0.485 * 255, 0.456 * 255, 0.406 * 255), (0.229 * 255, 0.224 * 255, 0.225 * 255)),
}


def normalize(images_BxHxWx3: Array, normalization: str, dtype: Dtype = jnp.float32) -> Array:
    """Turns uint8 pixels into network input, [B, H, W, 3] of `dtype`; `normalization` is a key of NORMALIZATIONS."""
    offset, scale = (jnp.array(values, jnp.float32) for values in NORMALIZATIONS[normalization])
    return ((images_BxHxWx3.astype(jnp.float32) - offset) / scale).astype(dtype)


def fast_lowering(platform: str) -> str:
    """The fast lowering of convolutions on 'cpu', 'tpu', ... (see `layers.convolution`)."""
    return "decomposed" if platform == "cpu" else "native"


def initial_classifier(key: Array, shape: tuple[int, int], dtype: Dtype = jnp.float32) -> Array:
    """U(-r, r) with r = 1 / sqrt(classes), google/automl effnetv2_model.py `dense_kernel_initializer`."""
    limit = shape[1] ** -0.5
    return jax.random.uniform(key, shape, dtype, -limit, limit)


class EfficientNet(nn.Module):
    """The network of an `Architecture`: normalised images [B, H, W, 3] -> float32 logits [B, num_classes].

    With num_classes 0 it returns the pooled features [B, head_filters]. Training draws from the random stream 'dropout'
    and gives 'group_stats' (see `layers.BatchNorm`); with batch_norm_frozen it gives none and normalises by the running
    statistics. A mutable collection 'endpoints' receives `stem`, `reduction_1` to `reduction_5` (the last output of
    each resolution), `head` [B, H/32, W/32, head_filters] and `pooled` [B, head_filters].
    """

    architecture: Architecture
    num_classes: int
    dropout_rate: float = 0.0
    survival_probability: float = 1.0
    batch_norm_group_size: int = 0
    batch_norm_epsilon: float = 1e-3
    dtype: Dtype = jnp.float32
    remat: bool = False
    lowering: str = "native"
    padding: str = "same"
    batch_norm_frozen: bool = False

    @nn.compact
    def __call__(self, x_BxHxWxC: Array, train: bool = False) -> Array:
        blocks = self.architecture.blocks
        conv = functools.partial(Conv, dtype=self.dtype, lowering=self.lowering, padding=self.padding)
        norm = functools.partial(
            BatchNorm, self.batch_norm_group_size, self.batch_norm_epsilon, self.dtype, self.lowering
        )
        residual = nn.remat(Residual, static_argnums=(2,)) if self.remat else Residual
        train_norm = train and not self.batch_norm_frozen

        x = conv(self.architecture.stem_filters, kernel_size=3, stride=2, name="stem_conv")(x_BxHxWxC)
        x = norm(name="stem_bn")(x, train_norm, activate=True)
        self.endpoint("stem", x)
        reduction = 1
        for index, block in enumerate(blocks):
            # Linear in the index over all blocks, including those without a residual.
            survival = 1 - (1 - self.survival_probability) * index / len(blocks)
            x = residual(
                block,
                survival,
                group_size=self.batch_norm_group_size,
                epsilon=self.batch_norm_epsilon,
                dtype=self.dtype,
                lowering=self.lowering,
                padding=self.padding,
                batch_norm_frozen=self.batch_norm_frozen,
                name=f"block_{index}",
            )(x, train)
            if index + 1 == len(blocks) or blocks[index + 1].stride > 1:
                self.endpoint(f"reduction_{reduction}", x)
                reduction += 1
        x = conv(self.architecture.head_filters, name="head_conv")(x)
        x = norm(name="head_bn")(x, train_norm, activate=True)
        self.endpoint("head", x)
        pooled = x.mean((1, 2), dtype=jnp.float32)
        self.endpoint("pooled", pooled)
        if not self.num_classes:
            return pooled
        dropped = nn.Dropout(self.dropout_rate)(pooled, deterministic=not train)
        return nn.Dense(self.num_classes, kernel_init=initial_classifier, name="classifier")(dropped)

    def endpoint(self, name: str, x: Array) -> None:
        if not self.is_initializing():  # init returns parameters and statistics only
            self.sow("endpoints", name, x)


def config_architecture(config: ConfigDict) -> Architecture:
    """The architecture that a config names or describes."""
    model = config.model
    return get_architecture(model.variant, blocks=model.blocks, width=model.width, depth=model.depth)


def make_model(config: ConfigDict, num_classes: int, platform: str, stage: Stage | None = None) -> EfficientNet:
    """The network of a config, lowered for 'cpu', 'tpu', ..., with the regularization of `stage` (None: evaluation)."""
    lowering = config.model.lowering
    if lowering == "auto":
        lowering = fast_lowering(platform)
    return EfficientNet(
        config_architecture(config),
        num_classes,
        dropout_rate=stage.dropout_rate if stage else 0.0,
        survival_probability=stage.survival_probability if stage else 1.0,
        batch_norm_group_size=config.batch_norm.group_size,
        batch_norm_epsilon=config.batch_norm.epsilon,
        dtype=jnp.dtype(config.dtype),
        remat=bool(stage and stage.remat),
        lowering=lowering,
        padding=config.model.padding,
        batch_norm_frozen=config.batch_norm.frozen,
    )
