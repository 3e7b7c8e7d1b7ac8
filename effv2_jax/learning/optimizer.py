"""Learning-rate schedules, and optimizers as Optax chains.

The defaults are those of google/automl `efficientnetv2/hparams.py` and `utils.py`: TensorFlow's RMSProp, weight decay
as L2 in the loss, a linear warm-up and a staircase that counts from step 0.
"""

import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from effv2_jax.curriculum import steps_of
from effv2_jax.errors import UserError, check_known

SCHEDULES = ("exponential", "cosine", "linear", "constant")
OPTIMIZERS = ("rmsprop", "sgd", "adamw", "lamb")
WEIGHT_DECAY_MODES = ("l2", "decoupled")
# The fields of ordered (pattern, factor) over the parameters, and what their factors multiply.
FACTORS = {"weight_decay_mask": "weight decay", "learning_rate_multipliers": "learning rate"}


def make_schedule(config: ConfigDict, *, num_examples: int, total_steps: int) -> optax.Schedule:
    """The learning rate as a function of the step: int [] -> float32 [].

    With peak = learning_rate_per_256 * global_batch_size / 256 and W = int(warm-up steps), the rate is peak * step / W
    before step W. From there on it is what a decay that began at step 0 has come to, so it drops where the warm-up ends
    (google/automl `efficientnetv2/utils.py`, WarmupLearningRateSchedule):

    - exponential: peak * decay_rate^floor(step / decay_steps)
    - cosine: peak / 2 * (1 + cos(pi * step / total_steps))
    - linear: peak * (1 - step / total_steps)
    - constant: peak

    Args:
      config: the whole experiment's.
      num_examples: training examples in an epoch.
      total_steps: length of the run in optimizer steps.

    Raises:
      UserError: an unknown schedule, or a duration that is missing or given twice.
    """
    schedule = config.schedule
    check_known("config.schedule.name", schedule.name, SCHEDULES)
    run = {"batch_size": config.global_batch_size, "num_examples": num_examples, "total_steps": total_steps}
    peak = config.optimizer.learning_rate_per_256 * config.global_batch_size / 256
    warmup_steps = int(steps_of(schedule, "warmup", **run))

    # The part of the run that is left: exact near the end, where 1 + cos(...) would cancel.
    def remaining(step: jax.Array) -> jax.Array:
        return jnp.maximum(total_steps - step, 0) / total_steps

    if schedule.name == "exponential":
        decay_steps = steps_of(schedule, "decay", **run)
        # A stair's length need not be a whole number and a float32 quotient can miss its edge, so the edges are found
        # here. The factor undoes float64's rounding where an edge is a whole number, and is too near 1 to move others.
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
    """(path, array, index of the first rule found in the path) of every parameter."""
    where = f"config.optimizer.{field}"
    patterns = []
    for rule in config.optimizer[field]:
        try:
            pattern, factor = rule
            patterns.append(re.compile(pattern))
            factor = float(factor)
        except re.error as error:
            raise UserError(f"{where}: '{pattern}' is no regular expression: {error}") from None
        except (TypeError, ValueError):
            raise UserError(f"{where} needs pairs ('pattern', factor), not {rule!r}") from None
        if not 0 <= factor < math.inf:
            raise UserError(f"{where}: the factor of '{pattern}' is {factor:g}; it must be finite and not negative")
    matches, unmatched = [], []
    for keys, leaf in jax.tree_util.tree_leaves_with_path(params):
        path = jax.tree_util.keystr(keys, simple=True, separator="/")
        index = next((i for i, pattern in enumerate(patterns) if pattern.search(path)), None)
        if index is None:
            unmatched.append(path)
        else:
            matches.append((path, leaf, index))
    if unmatched:
        raise UserError(f"{where} matches none of {', '.join(unmatched)}; a last rule ('.*', 1.0) would match the rest")
    return matches


def parameter_factors(config: ConfigDict, field: str, params: Any) -> Any:
    """A tree like `params` of the floats that a key of FACTORS gives.

    Args:
      config: the whole experiment's; `config.optimizer[field]` holds ordered (pattern, factor), of which the first
        pattern that `re.search` finds in a parameter's path gives the factor.
      field: a key of FACTORS.
      params: nested dictionary of arrays or shapes; a parameter's path is its keys joined by '/'.

    Raises:
      UserError: a parameter that no rule matches (all are listed), or a malformed rule.
    """
    rules = config.optimizer[field]
    factors = [float(rules[index][1]) for _, _, index in _first_matches(config, field, params)]
    return jax.tree.unflatten(jax.tree.structure(params), factors)


def describe_factors(config: ConfigDict, field: str, params: Any) -> list[str]:
    """One line a rule: the parameters it decides and the first of them. Arguments and errors of `parameter_factors`."""
    matches = _first_matches(config, field, params)
    lines = []
    for index, (pattern, factor) in enumerate(config.optimizer[field]):
        found = [(path, leaf) for path, leaf, decided_by in matches if decided_by == index]
        arrays, values = len(found), sum(leaf.size for _, leaf in found)
        example = f", first {found[0][0]}" if found else ""
        lines.append(
            f"{FACTORS[field]} x {float(factor):g} by '{pattern}': {arrays} parameters, {values:,} values{example}"
        )
    return lines


def _add_decay(updates: Any, params: Any, decays: Any, scale: Any = 1.0) -> Any:
    # Zero decays are known while tracing: they cost nothing.
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

    - rmsprop: m = momentum * m + lr * g / sqrt(r + epsilon) with r, the mean square, from ones; w -= m. TensorFlow's
      (`tensorflow/python/training/rmsprop.py`): the learning rate is inside the momentum.
    - sgd: m = momentum * m + g; w -= lr * m.
    - adamw: arXiv 1711.05101 as `optax.adamw`.
    - lamb: arXiv 1904.00962, Algorithm 2, with a trust ratio for each parameter array.

    With d = weight_decay * factor of the parameter (weight_decay_mask), 'l2' adds d * w to the gradient before
    clipping, as if 0.5 * d * |w|^2 were in the loss (with adamw this is plain Adam). 'decoupled' takes lr * d * w from
    the parameter, outside the momentum; in lamb it is inside the trust ratio.

    learning_rate_multipliers multiply the finished update and nothing that the optimizer remembers. A parameter whose
    multiplier is 0 is frozen: its update is 0, it has no state, and clipping does not count it. `parameter_factors`
    tells how the rules of both fields match.

    Args:
      config: the whole experiment's.
      schedule: learning rate by step.
      params: the parameters, or their shapes.

    Raises:
      UserError: an unknown name, or a mask or multipliers that do not fit `params`.
    """
    optimizer = config.optimizer
    check_known("config.optimizer.name", optimizer.name, OPTIMIZERS)
    check_known("config.optimizer.weight_decay_mode", optimizer.weight_decay_mode, WEIGHT_DECAY_MODES)
    factors, rates = (parameter_factors(config, field, params) for field in FACTORS)
    frozen = jax.tree.map(lambda rate: rate == 0, rates)
    # Optax leaves this node where it hides a frozen parameter from the chain.
    decays = jax.tree.map(
        lambda factor, hidden: optax.MaskedNode() if hidden else optimizer.weight_decay * factor, factors, frozen
    )
    add_decay = optax.stateless(lambda updates, params: _add_decay(updates, params, decays))
    l2 = optimizer.weight_decay_mode == "l2"
    decoupled = optax.identity() if l2 else add_decay
    descend = optax.scale_by_learning_rate(schedule)

    if optimizer.name == "rmsprop":
        rms = optax.scale_by_rms(optimizer.decay, optimizer.epsilon, initial_scale=1.0, eps_in_sqrt=True)
        # The learning rate is already in the momentum, so a decay outside of it scales itself.
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
    # By default the state is that of the chain alone.
    if any(jax.tree.leaves(frozen)):
        optimize = optax.selective_transform(optimize, freeze_mask=frozen)
    if any(rate not in (0, 1) for rate in jax.tree.leaves(rates)):
        multiply = optax.stateless(lambda updates, params: jax.tree.map(jnp.multiply, updates, rates))
        optimize = optax.chain(optimize, multiply)
    return optimize
