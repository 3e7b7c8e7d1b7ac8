"""A training step from Flax's and Optax's own parts, for comparison with ours: `effv2 bench program`.

`nn.Conv`, `nn.BatchNorm` over the global batch, `optax.rmsprop`, weight decay and averages as tree maps. Network and
recipe are ours, without batch-norm groups and without mixup and cutmix.
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jax.sharding import Mesh
from ml_collections import ConfigDict

from effv2_jax.curriculum import Curriculum, Stage
from effv2_jax.learning.optimizer import make_schedule
from effv2_jax.network.architecture import Architecture, Block
from effv2_jax.network.model import config_architecture
from effv2_jax.runtime import mesh as mesh_lib

Array = jax.Array
PyTree = Any


class PlainBlock(nn.Module):
    """MBConv or Fused-MBConv."""

    block: Block
    survival_probability: float
    dtype: Any

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        block, inputs = self.block, x
        conv = functools.partial(nn.Conv, padding="SAME", use_bias=False, dtype=self.dtype)
        norm = functools.partial(nn.BatchNorm, not train, momentum=0.9, epsilon=1e-3, dtype=self.dtype)
        spatial: dict[str, Any] = {"kernel_size": (block.kernel_size,) * 2, "strides": block.stride}
        if block.expand_ratio != 1:
            options: dict[str, Any] = spatial if block.kind == "fused" else {"kernel_size": (1, 1)}
            x = nn.silu(norm()(conv(block.expanded_filters, **options)(x)))
        if block.kind == "mbconv":
            x = conv(block.expanded_filters, feature_group_count=block.expanded_filters, **spatial)(x)
            x = nn.silu(norm()(x))
        if block.se_filters:
            gate = x.mean((1, 2), keepdims=True)
            gate = nn.silu(nn.Conv(block.se_filters, (1, 1), dtype=self.dtype)(gate))
            x *= nn.sigmoid(nn.Conv(block.expanded_filters, (1, 1), dtype=self.dtype)(gate))
        if block.kind == "fused" and block.expand_ratio == 1:
            x = nn.silu(norm()(conv(block.output_filters, **spatial)(x)))
        else:
            x = norm()(conv(block.output_filters, (1, 1))(x))
        if block.has_residual:
            x = nn.Dropout(1 - self.survival_probability, broadcast_dims=(1, 2, 3))(x, deterministic=not train)
            x += inputs
        return x


class PlainEfficientNet(nn.Module):
    """Normalised images [B, H, W, 3] to float32 logits [B, num_classes]."""

    architecture: Architecture
    num_classes: int
    dropout_rate: float
    survival_probability: float
    dtype: Any

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        architecture = self.architecture
        conv = functools.partial(nn.Conv, use_bias=False, dtype=self.dtype)
        norm = functools.partial(nn.BatchNorm, not train, momentum=0.9, epsilon=1e-3, dtype=self.dtype)
        x = nn.silu(norm()(conv(architecture.stem_filters, (3, 3), 2)(x)))
        for index, block in enumerate(architecture.blocks):
            survival = 1 - (1 - self.survival_probability) * index / len(architecture.blocks)
            x = PlainBlock(block, survival, self.dtype)(x, train)
        x = nn.silu(norm()(conv(architecture.head_filters, (1, 1))(x)))
        x = nn.Dropout(self.dropout_rate)(x.mean((1, 2)), deterministic=not train)
        return nn.Dense(self.num_classes)(x).astype(jnp.float32)


@flax.struct.dataclass
class PlainState:
    step: Array
    params: PyTree
    batch_stats: PyTree
    opt_state: optax.OptState
    ema: PyTree


def plain_train_step(
    config: ConfigDict, stage: Stage, architecture: Architecture, num_classes: int, schedule: optax.Schedule
) -> tuple[Callable[[], PlainState], Callable[[PlainState, dict[str, Array]], tuple[PlainState, dict[str, Array]]]]:
    """(makes the initial state, the step) of a stage, with the config's dtype, rates, smoothing, decay and EMA."""
    model = PlainEfficientNet(
        architecture, num_classes, stage.dropout_rate, stage.survival_probability, jnp.dtype(config.dtype)
    )
    settings = config.optimizer
    optimizer = optax.rmsprop(
        schedule, settings.decay, settings.epsilon, initial_scale=1.0, momentum=settings.momentum, eps_in_sqrt=True
    )

    def initial_state() -> PlainState:
        variables = model.init(jax.random.key(0), jnp.zeros((2, 32, 32, 3)), train=False)
        params, batch_stats = variables["params"], variables["batch_stats"]
        ema = {"params": params, "batch_stats": batch_stats}
        return PlainState(jnp.zeros((), jnp.int32), params, batch_stats, optimizer.init(params), ema)

    def step(state: PlainState, batch: dict[str, Array]) -> tuple[PlainState, dict[str, Array]]:
        images = ((batch["image"].astype(jnp.float32) - 128) / 128).astype(model.dtype)
        labels = optax.smooth_labels(jax.nn.one_hot(batch["label"], num_classes), config.loss.label_smoothing)

        def loss_fn(params: PyTree) -> tuple[Array, tuple[PyTree, Array]]:
            logits, updates = model.apply(
                {"params": params, "batch_stats": state.batch_stats},
                images,
                train=True,
                rngs={"dropout": jax.random.fold_in(jax.random.key(1), state.step)},
                mutable=["batch_stats"],
            )
            kernels = [leaf for leaf in jax.tree.leaves(params) if leaf.ndim > 1]
            decay = 0.5 * settings.weight_decay * sum(jnp.square(kernel).sum() for kernel in kernels)
            loss = optax.softmax_cross_entropy(logits, labels).mean() + decay
            return loss, (updates["batch_stats"], (logits.argmax(-1) == batch["label"]).mean())

        (loss, (batch_stats, accuracy)), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        averaged = {"params": params, "batch_stats": batch_stats}
        ema = optax.incremental_update(averaged, state.ema, 1 - config.ema.decay)
        metrics = {"loss": loss, "accuracy": accuracy, "gradient_norm": optax.tree.norm(grads)}
        return PlainState(state.step + 1, params, batch_stats, opt_state, ema), metrics

    return initial_state, step


def lower_plain_train_step(
    config: ConfigDict, curriculum: Curriculum, stage: Stage, num_classes: int, num_examples: int, mesh: Mesh
) -> jax.stages.Lowered:
    """The plain step of a stage, ready for compilation, for `planning.cost_model.CostModel`."""
    schedule = make_schedule(config, num_examples=num_examples, total_steps=curriculum.total_steps)
    initial_state, step = plain_train_step(config, stage, config_architecture(config), num_classes, schedule)
    state = mesh_lib.replicate_shapes(jax.eval_shape(initial_state), mesh)
    batch = mesh_lib.abstract_batch(config.global_batch_size, stage.image_size, 1, mesh)
    return jax.jit(step, out_shardings=mesh_lib.replicated(mesh), donate_argnums=0).lower(state, batch)
