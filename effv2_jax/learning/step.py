"""The pure training and evaluation steps. A training step is compiled for every stage, the evaluation step once.

Everything here is a function of its arguments: random numbers come from (seed, stream, step), so no random state is
stored and a new stream does not change the others.
"""

import zlib
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from effv2_jax.config.stage_values import split_unit
from effv2_jax.curriculum import Stage
from effv2_jax.learning.ema import update_ema
from effv2_jax.learning.losses import make_loss, smoothed_targets
from effv2_jax.learning.mixing import mix
from effv2_jax.learning.optimizer import parameter_factors
from effv2_jax.network.layers import update_batch_stats
from effv2_jax.network.model import EfficientNet, normalize

Array = jax.Array
Batch = dict[str, Array]
Metrics = dict[str, Array]


@flax.struct.dataclass
class TrainState:
    """What training changes. `ema` holds averages of {'params', 'batch_stats'}; it is empty if EMA is off."""

    step: Array  # int32: optimizer steps done
    params: Any
    batch_stats: Any
    opt_state: optax.OptState
    ema: dict[str, Any]

    @property
    def variables(self) -> dict[str, Any]:
        """The raw weights as the model takes them."""
        return {"params": self.params, "batch_stats": self.batch_stats}

    @property
    def sets(self) -> dict[str, Any]:
        """The sets of weights to use: {'raw': variables, 'ema': variables}, without 'ema' if EMA is off."""
        return {"raw": self.variables} | ({"ema": self.ema} if self.ema else {})


def random_stream(seed: int, name: str, step: Array | int) -> Array:
    """The key of a named stream at a step."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), zlib.crc32(name.encode())), step)


def initial_variables(model: EfficientNet, seed: int) -> dict[str, Any]:
    """Fresh {'params', 'batch_stats'} from the stream 'init'."""
    # Two images of 32 px: parameters do not depend on the size, and small images are quick to trace.
    variables: Any = model.init({"params": random_stream(seed, "init", 0)}, jnp.zeros((2, 32, 32, 3), model.dtype))
    return variables


def initial_state(model: EfficientNet, optimizer: optax.GradientTransformation, config: ConfigDict) -> TrainState:
    """The state at step 0. The averages start at the initial values."""
    variables = initial_variables(model, config.seed)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=variables["params"],
        batch_stats=variables["batch_stats"],
        opt_state=optimizer.init(variables["params"]),
        # Copies: the state is donated, and a buffer cannot be donated twice.
        ema=jax.tree.map(jnp.copy, dict(variables)) if config.ema.decay else {},
    )


def split_batch(batch: Batch, num_parts: int, unit: int) -> Batch:
    """[B, ...] -> [num_parts, B / num_parts, ...]: part p takes every num_parts-th run of `unit` examples.

    A device holds consecutive examples and keeps its share of every part, so no example moves between devices.
    """

    def split(x: Array) -> Array:
        units = x.reshape(-1, num_parts, unit, *x.shape[1:]).swapaxes(0, 1)
        return units.reshape(num_parts, -1, *x.shape[1:])

    return jax.tree.map(split, batch)


def make_train_step(
    config: ConfigDict,
    stage: Stage,
    model: EfficientNet,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """One optimizer step of a stage.

    The batch is {'image': uint8 [B, S, S, 3], 'label': int32 [B] or [B, L]}. The metrics are scalars from before the
    update: the mean 'loss' and top-1 'accuracy' on the augmented (and mixed) images, 'gradient_norm' before clipping
    and without frozen parameters, 'learning_rate', and 'finite'.
    """
    loss_of = make_loss(config.loss.name)

    def rates_of(params: Any) -> Any:
        return parameter_factors(config, "learning_rate_multipliers", params)

    def loss_fn(params: Any, batch_stats: Any, batch: Batch, step: Array, part: Array | int) -> tuple[Array, Any]:
        mixing_key, dropout_key = (
            jax.random.fold_in(random_stream(config.seed, name, step), part) for name in ("mixing", "dropout")
        )
        images = normalize(batch["image"], config.data.normalization, model.dtype)
        targets = smoothed_targets(batch["label"], model.num_classes, config.loss.label_smoothing, config.loss.name)
        images, targets = mix(mixing_key, images, targets, stage.mixup_alpha, stage.cutmix_alpha)
        # XLA removes what only the gradients of frozen parameters need.
        params = jax.tree.map(lambda p, rate: p if rate else jax.lax.stop_gradient(p), params, rates_of(params))
        logits, updates = model.apply(
            {"params": params, "batch_stats": batch_stats},
            images,
            train=True,
            rngs={"dropout": dropout_key},
            mutable=["group_stats"],
        )
        loss = loss_of(logits, targets).mean()
        accuracy = _is_label(logits.argmax(-1), batch["label"]).mean(dtype=jnp.float32)
        # Frozen batch norms have no group statistics.
        return loss, ({"loss": loss, "accuracy": accuracy}, updates.get("group_stats", {}))

    gradient_fn = jax.grad(loss_fn, has_aux=True)

    def gradients(state: TrainState, batch: Batch) -> tuple[Any, Metrics, Any]:
        parts = stage.accumulation_steps
        if parts == 1:
            grads, (metrics, group_stats) = gradient_fn(state.params, state.batch_stats, batch, state.step, 0)
            return grads, metrics, group_stats

        def accumulate(total: Any, part: tuple[Array, Batch]) -> tuple[Any, Any]:
            index, batch = part
            grads, (metrics, group_stats) = gradient_fn(state.params, state.batch_stats, batch, state.step, index)
            return jax.tree.map(jnp.add, total, (grads, metrics)), group_stats

        one_part = jax.tree.map(lambda x: x[0], batches := split_batch(batch, parts, split_unit(config)))
        shapes = jax.eval_shape(gradient_fn, state.params, state.batch_stats, one_part, state.step, 0)
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), (shapes[0], shapes[1][0]))
        (grads, metrics), group_stats = jax.lax.scan(accumulate, zeros, (jnp.arange(parts), batches))
        grads, metrics = jax.tree.map(lambda x: x / parts, (grads, metrics))
        return grads, metrics, jax.tree.map(lambda x: x.reshape(-1, x.shape[-1]), group_stats)

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        batch = {name: batch[name] for name in ("image", "label")}
        grads, metrics, group_stats = gradients(state, batch)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        # Frozen parameters are kept as they are: -0.0 plus an update of 0 would be 0.0.
        params = jax.tree.map(lambda old, new, rate: new if rate else old, state.params, params, rates_of(params))
        batch_stats = state.batch_stats
        if not config.batch_norm.frozen:
            batch_stats = update_batch_stats(batch_stats, group_stats, config.batch_norm.momentum)
        ema = state.ema
        if config.ema.decay:
            new = {"params": params, "batch_stats": batch_stats}
            ema = update_ema(ema, new, state.step, config.ema.decay, config.ema.warmup)
        gradient_norm = optax.tree.norm(grads)
        metrics |= {
            "gradient_norm": gradient_norm,
            "learning_rate": schedule(state.step),
            "finite": jnp.isfinite(metrics["loss"]) & jnp.isfinite(gradient_norm),
        }
        return TrainState(state.step + 1, params, batch_stats, opt_state, ema), metrics

    return train_step


def _is_label(classes_B: Array, labels: Array) -> Array:
    """bool [B]: whether a class is the label, int [B], or one of several labels, [B, L]."""
    return classes_B == labels if labels.ndim == 1 else (classes_B[:, None] == labels).any(1)


def make_evaluation_step(config: ConfigDict, model: EfficientNet) -> Callable[[Any, Batch], Metrics]:
    """Sums over one padded batch {'image', 'label', 'mask'}: int32 'top1', 'top5', 'count' and float32 'loss'.

    With several labels the best-ranked one counts.
    """
    loss_of = make_loss(config.loss.name)

    def evaluation_step(variables: Any, batch: Batch) -> Metrics:
        images = normalize(batch["image"], config.data.normalization, model.dtype)
        logits: Any = model.apply(variables, images)
        labels, mask = batch["label"], batch["mask"]
        targets = smoothed_targets(labels, model.num_classes, 0.0, config.loss.name)

        def rank_of(labels_B: Array) -> Array:
            """How many classes rank before a label: score higher, or as high at a smaller index (a stable sort)."""
            score = jnp.take_along_axis(logits, labels_B[:, None], axis=1)
            smaller = jnp.arange(model.num_classes) < labels_B[:, None]
            return ((logits > score) | ((logits == score) & smaller)).sum(1)

        if labels.ndim == 1:
            rank = rank_of(labels)
        else:
            ranks_BxL = jax.vmap(rank_of, in_axes=1, out_axes=1)(labels)
            rank = jnp.where(labels >= 0, ranks_BxL, model.num_classes).min(1)
        # Comparisons with NaN are false, so a NaN would rank first.
        correct = mask & jnp.isfinite(logits).all(1)
        return {
            "top1": (correct & (rank < 1)).sum(dtype=jnp.int32),
            "top5": (correct & (rank < 5)).sum(dtype=jnp.int32),
            "count": mask.sum(dtype=jnp.int32),
            "loss": jnp.where(mask, loss_of(logits, targets), 0).sum(),
        }

    return evaluation_step
