"""Exponential moving averages of parameters and batch-norm statistics."""

from typing import Any

import jax
import jax.numpy as jnp


def _update_rate(step: jax.Array | int, decay: float, warmup: bool) -> jax.Array:
    # 1 - decay without cancellation: 1 - min(d, (1 + n) / (10 + n)) = max(1 - d, 9 / (10 + n)) and n = step + 1.
    rate = jnp.float32(1 - decay)
    return jnp.maximum(rate, 9 / (11 + jnp.asarray(step, jnp.float32))) if warmup else rate


def ema_decay(step: jax.Array | int, decay: float, warmup: bool) -> jax.Array:
    """The decay at a step, float32 []: min(decay, (1 + n) / (10 + n)) with `warmup`, else `decay`.

    n = step + 1 counts the optimizer steps done, including the current one: the released code averages after the step,
    and passes a global step that already counts it as num_updates (google/automl `efficientnetv2/main.py`; tensorflow
    `python/training/moving_averages.py`).

    Args:
      step: index (from 0) of the optimizer step whose result is averaged.
      decay: the highest decay, in (0, 1).
      warmup: use lower decays in the first steps.
    """
    return 1 - _update_rate(step, decay, warmup)


def update_ema(ema: Any, new: Any, step: jax.Array | int, decay: float, warmup: bool) -> Any:
    """decay * ema + (1 - decay) * new, for every array of a tree such as {'params': ..., 'batch_stats': ...}.

    Args:
      ema: averages after the previous step; at step 0 the initial values, as in TensorFlow.
      new: values after this step, a tree like `ema`.
      step, decay, warmup: as in `ema_decay`.
    """
    rate = _update_rate(step, decay, warmup)
    return jax.tree.map(lambda average, value: average + rate * (value - average), ema, new)
