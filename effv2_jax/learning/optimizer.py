"""Learning-rate schedules, and optimizers as Optax chains.

The defaults are those of google/automl `efficientnetv2/hparams.py` and `utils.py`: TensorFlow's RMSProp, weight decay
as L2 in the loss, a linear warm-up and a staircase that counts from step 0.
"""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from effv2_jax.config import steps_of
from effv2_jax.errors import UserError

# The fields that hold ordered (pattern, factor) over the parameters, and what their factors multiply.
FACTORS = {"weight_decay_mask": "weight decay", "learning_rate_multipliers": "learning rate"}


def make_schedule(config: ConfigDict, *, num_examples: int, total_steps: int) -> optax.Schedule:
    """The learning rate as a function of the step: int [] -> float32 [].

    With peak = learning_rate_per_256 * global_batch_size / 256 and W = int(warm-up steps), the rate is peak * step / W
    before step W. From step W on it follows a decay that began at step 0, so it drops where the warm-up ends
    (google/automl `efficientnetv2/utils.py`, WarmupLearningRateSchedule):

    - exponential: peak * decay_rate^floor(step / decay_steps)
    - cosine: peak / 2 * (1 + cos(pi * step / total_steps))
    - linear: peak * (1 - step / total_steps)
    - constant: peak

    Args:
      config: of the whole experiment.
      num_examples: training examples in an epoch.
      total_steps: length of the run in optimizer steps.
    """
    schedule = config.schedule
    run = {"batch_size": config.global_batch_size, "num_examples": num_examples, "total_steps": total_steps}
    peak = config.optimizer.learning_rate_per_256 * config.global_batch_size / 256
    warmup_steps = int(steps_of(schedule, "warmup", **run))

    # The share of the run that remains; it is exact near the end, where 1 + cos(...) would cancel.
    def remaining(step: jax.Array) -> jax.Array:
        return jnp.maximum(total_steps - step, 0) / total_steps

    if schedule.name == "exponential":
        decay_steps = steps_of(schedule, "decay", **run)
        # The length of a stair may be fractional, and a float32 quotient can miss its edge, so the edges are computed
        # here. The factor undoes float64's rounding of an edge at a whole number; it is too close to 1 to move others.
        stairs = np.arange(int(total_steps / decay_steps) + 1)
        edges = np.ceil(stairs[1:] * decay_steps * (1 - 1e-12)).astype(np.int32)
        rates = (peak * schedule.decay_rate ** stairs.astype(np.float64)).astype(np.float32)

        def decayed(step: jax.Array) -> jax.Array:
            return jnp.asarray(rates)[jnp.searchsorted(jnp.asarray(edges), step, side="right")]
    elif schedule.name == "cosine":

        def decayed(step: jax.Array) -> jax.Array:
            return peak * jnp.square(jnp.sin(jnp.pi / 2 * remaining(step)))
    elif schedule.name == "linear":

        def decayed(step: jax.Array) -> jax.Array:
            return peak * remaining(step)
    else:

        def decayed(step: jax.Array) -> jax.Array:
            return jnp.full_like(step, peak, jnp.float32)

    def learning_rate(step: Any) -> jax.Array:
        step = jnp.asarray(step, jnp.int32)
        return jnp.where(step < warmup_steps, peak * step / max(warmup_steps, 1), decayed(step)).astype(jnp.float32)

    return learning_rate


def _first_matches(config: ConfigDict, field: str, params: Any) -> list[tuple[str, Any, int]]:
    """(path, array, index of the first rule whose pattern matches in the path) of every parameter."""
    patterns = [re.compile(pattern) for pattern, _ in config.optimizer[field]]
    matches, unmatched = [], []
    for keys, leaf in jax.tree_util.tree_leaves_with_path(params):
        path = jax.tree_util.keystr(keys, simple=True, separator="/")
        index = next((i for i, pattern in enumerate(patterns) if pattern.search(path)), None)
        if index is None:
            unmatched.append(path)
        else:
            matches.append((path, leaf, index))
    if unmatched:
        raise UserError(
            f"config.optimizer.{field} matches none of {', '.join(unmatched)}; a last rule ('.*', 1.0) would match the "
            "rest"
        )
    return matches


def parameter_factors(config: ConfigDict, field: str, params: Any) -> Any:
    """A tree like `params` of the factors by one of the fields FACTORS.

    Args:
      config: of the whole experiment. `config.optimizer[field]` holds ordered (pattern, factor); the first pattern that
        `re.search` finds in a parameter's path gives the factor.
      field: a key of FACTORS.
      params: nested dictionary of arrays or shapes; a parameter's path is its keys joined by '/'.

    Raises:
      UserError: a parameter that no rule matches; all of them are listed.
    """
    rules = config.optimizer[field]
    factors = [float(rules[index][1]) for _, _, index in _first_matches(config, field, params)]
    return jax.tree.unflatten(jax.tree.structure(params), factors)


def describe_factors(config: ConfigDict, field: str, params: Any) -> list[str]:
    """One line per rule: how many parameters have its factor, and the first of them.

    Arguments and errors are those of `parameter_factors`.
    """
    matches = _first_matches(config, field, params)
    lines = []
    for index, (pattern, factor) in enumerate(config.optimizer[field]):
        matched = [(path, leaf) for path, leaf, first in matches if first == index]
        num_values = sum(leaf.size for _, leaf in matched)
        example = f", first {matched[0][0]}" if matched else ""
        lines.append(
            f"{FACTORS[field]} x {float(factor):g} by '{pattern}': {len(matched)} parameters, {num_values:,} values"
            f"{example}"
        )
    return lines


def _add_decay(updates: Any, params: Any, decays: Any, scale: Any = 1.0) -> Any:
    # Zero decays are known at trace time, so they cost nothing.
    return jax.tree.map(lambda u, p, decay: u + (scale * decay) * p if decay else u, updates, params, decays)


def _add_scheduled_decay(schedule: optax.Schedule, decays: Any) -> optax.GradientTransformation:
    """Adds -schedule(count) * decay * parameter to finished updates."""

    def init(params: Any) -> optax.ScaleByScheduleState:
        return optax.ScaleByScheduleState(count=jnp.zeros((), jnp.int32))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, optax.ScaleByScheduleState]:
        updates = _add_decay(updates, params, decays, -schedule(state.count))
        return updates, optax.ScaleByScheduleState(count=optax.safe_increment(state.count))

    return optax.GradientTransformation(init, update)


def make_optimizer(config: ConfigDict, schedule: optax.Schedule, params: Any) -> optax.GradientTransformation:
    """The chain weight decay ('l2') -> clipping -> optimizer -> multipliers; `update` needs the parameters.

    - rmsprop: m = momentum * m + lr * g / sqrt(r + epsilon), where the mean square r starts at one; w -= m. This is
      TensorFlow's (`tensorflow/python/training/rmsprop.py`): the learning rate is inside the momentum.
    - sgd: m = momentum * m + g; w -= lr * m.
    - adamw: arXiv 1711.05101 as `optax.adamw`.
    - lamb: arXiv 1904.00962, Algorithm 2, with a trust ratio for each parameter array.

    With d = weight_decay * factor of the parameter (weight_decay_mask), 'l2' adds d * w to the gradient before
    clipping, as if 0.5 * d * |w|^2 were in the loss (with adamw this is plain Adam). 'decoupled' takes lr * d * w from
    the parameter, outside the momentum; in lamb it is inside the trust ratio.

    learning_rate_multipliers multiply the finished update, not the optimizer's state. A parameter whose multiplier is 0
    is frozen: its update is 0, it has no state, and clipping does not count it. `parameter_factors` documents how the
    rules of both fields match.

    Args:
      config: of the whole experiment.
      schedule: learning rate by step.
      params: the parameters, or their shapes.

    Raises:
      UserError: a parameter that the mask or the multipliers do not match.
    """
    optimizer = config.optimizer
    factors, rates = (parameter_factors(config, field, params) for field in FACTORS)
    frozen = jax.tree.map(lambda rate: rate == 0, rates)
    # Optax puts this node in place of a frozen parameter, which it hides from the chain.
    decays = jax.tree.map(
        lambda factor, hidden: optax.MaskedNode() if hidden else optimizer.weight_decay * factor, factors, frozen
    )
    add_decay = optax.stateless(lambda updates, params: _add_decay(updates, params, decays))
    l2 = optimizer.weight_decay_mode == "l2"
    decoupled = optax.identity() if l2 else add_decay
    descend = optax.scale_by_learning_rate(schedule)

    if optimizer.name == "rmsprop":
        rms = optax.scale_by_rms(optimizer.decay, optimizer.epsilon, initial_scale=1.0, eps_in_sqrt=True)
        # The learning rate is already in the momentum, so a decay outside the momentum applies it by itself.
        last = optax.identity() if l2 else _add_scheduled_decay(schedule, decays)
        chain = [rms, descend, optax.trace(optimizer.momentum), last]
    elif optimizer.name == "sgd":
        chain = [optax.trace(optimizer.momentum), decoupled, descend]
    else:
        adam = optax.scale_by_adam(optimizer.beta1, optimizer.beta2, optimizer.epsilon)
        trust_ratio = optax.scale_by_trust_ratio() if optimizer.name == "lamb" else optax.identity()
        chain = [adam, decoupled, trust_ratio, descend]

    before = [add_decay] if l2 else []
    if optimizer.clip_norm:
        before.append(optax.clip_by_global_norm(optimizer.clip_norm))
    optimize = optax.chain(*before, *chain)
    # Without frozen parameters and multipliers the state is that of the chain alone.
    if any(jax.tree.leaves(frozen)):
        optimize = optax.selective_transform(optimize, freeze_mask=frozen)
    if any(rate not in (0, 1) for rate in jax.tree.leaves(rates)):
        multiply = optax.stateless(lambda updates, params: jax.tree.map(jnp.multiply, updates, rates))
        optimize = optax.chain(optimize, multiply)
    return optimize
