"""Schedules against the released recipe; optimizers against TensorFlow and transcriptions of their papers."""

import functools
import math
from fractions import Fraction

import jax
import jax.numpy as jnp
import needs
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from effv2_jax.config import defaults
from effv2_jax.errors import UserError
from effv2_jax.learning.optimizer import FACTORS, describe_factors, make_optimizer, make_schedule, parameter_factors

TRAIN_EXAMPLES = 1_256_144  # of the released ImageNet training split
TOTAL_STEPS = 107_336  # 350 epochs of them in batches of 4096
RATES = [0.05 * (1 + math.sin(step)) + 0.01 for step in range(25)]
DECAY_ALL = ((".*", 1.0),)


def schedule_of(total_steps=TOTAL_STEPS, num_examples=TRAIN_EXAMPLES, **fields):
    config = defaults()
    config.schedule.update(fields)
    return make_schedule(config, num_examples=num_examples, total_steps=total_steps)


# Schedules.


def test_exponential_schedule_has_the_values_of_the_released_recipe():
    schedule = jax.jit(schedule_of())
    assert schedule(0) == 0
    assert schedule(1) == pytest.approx(0.256 / 1533, rel=1e-6)
    assert schedule(1532) == pytest.approx(0.256 * 1532 / 1533, rel=1e-6)
    assert schedule(1533) == pytest.approx(0.256 * 0.97**2, rel=1e-6)  # two stairs went by during the warm-up
    assert schedule(1533) == pytest.approx(0.2409, abs=5e-5)
    assert schedule(TOTAL_STEPS - 1) == pytest.approx(0.00309, abs=5e-6)
    assert schedule(jnp.int32(7)).dtype == jnp.float32


def test_every_stair_has_its_exact_edge():
    stair = Fraction(12, 5) * TRAIN_EXAMPLES / 4096  # 736.02... steps
    edges = [math.ceil(k * stair) for k in range(3, int(TOTAL_STEPS / stair) + 1)]
    assert len(edges) == 143
    steps = np.array(edges)[:, None] + np.array([-1, 0])
    expected = [[0.256 * 0.97 ** math.floor(step / stair) for step in map(int, pair)] for pair in steps]
    np.testing.assert_allclose(jax.vmap(jax.vmap(schedule_of()))(steps), expected, rtol=2e-6)


def test_a_whole_edge_of_fractional_stairs_is_not_late():
    config = defaults()
    config.global_batch_size = 16
    schedule = make_schedule(config, num_examples=1002, total_steps=8000)
    # 50 stairs of 150.3 steps are 7515 steps, but 50 * 150.3 is 7515.000000000001 in float64.
    assert schedule(7514) == pytest.approx(0.001 * 0.97**49, rel=1e-5)
    assert schedule(7515) == pytest.approx(0.001 * 0.97**50, rel=1e-5)


@given(
    tenths=st.integers(1, 100),
    num_examples=st.integers(1_000, 2_000_000),
    batch_size=st.sampled_from([16, 100, 768, 4096]),
    stairs=st.integers(1, 300),
)
@settings(max_examples=50, deadline=None)
def test_stair_edges_are_exact_for_any_length(tenths, num_examples, batch_size, stairs):
    config = defaults()
    config.global_batch_size = batch_size
    config.schedule.warmup_epochs = 0.0
    config.schedule.decay_epochs = tenths / 10
    stair = Fraction(tenths, 10) * Fraction(num_examples, batch_size)
    edge = math.ceil(stairs * stair)
    schedule = make_schedule(config, num_examples=num_examples, total_steps=edge + 1)
    peak = 0.016 * batch_size / 256
    for step in {max(edge - 1, 0), edge}:
        assert schedule(step) == pytest.approx(peak * 0.97 ** math.floor(step / stair), rel=1e-5)


def test_cosine_linear_and_constant_count_from_step_0():
    total = TOTAL_STEPS
    steps = np.array([1533, 2000, total // 4, total // 2, total - 1000, total - 1, total])
    cosine = 0.128 * (1 + np.cos(np.pi * steps / total))
    np.testing.assert_allclose(jax.vmap(schedule_of(name="cosine"))(steps), cosine, rtol=1e-5, atol=1e-16)
    np.testing.assert_allclose(jax.vmap(schedule_of(name="linear"))(steps), 0.256 * (1 - steps / total), rtol=1e-6)
    np.testing.assert_allclose(jax.vmap(schedule_of(name="constant"))(steps), np.full(7, 0.256), rtol=1e-6)
    for name in ("cosine", "linear", "constant"):
        assert schedule_of(name=name)(700) == pytest.approx(0.256 * 700 / 1533, rel=1e-6)


def test_warmup_can_be_off_and_the_peak_scales_with_the_batch():
    config = defaults()
    config.schedule.warmup_epochs = 0.0
    config.schedule.name = "constant"
    config.global_batch_size = 512
    config.optimizer.learning_rate_per_256 = 0.0005
    schedule = make_schedule(config, num_examples=1000, total_steps=10)
    assert schedule(0) == schedule(9) == pytest.approx(0.001)


def test_warmup_can_be_a_percentage_of_the_run():
    schedule = schedule_of(total_steps=1000, name="constant", warmup_epochs=None, warmup_percent=10.0)
    assert schedule(50) == pytest.approx(0.128)
    assert schedule(100) == pytest.approx(0.256)


# Optimizers.


def problem():
    """Parameters, and their gradients at 25 steps."""
    rng = np.random.default_rng(0)
    params = {"conv": {"kernel": rng.normal(size=(3, 2))}, "bn": {"scale": 1 + 0.1 * rng.normal(size=4)}}
    params = jax.tree.map(lambda x: x.astype(np.float32), params)
    return params, [jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), params) for _ in RATES]


def config_of(**fields):
    config = defaults()
    config.optimizer.weight_decay = 0.0
    config.optimizer.weight_decay_mask = DECAY_ALL
    config.optimizer.update(fields)
    return config


def ours(config, params, gradients, rates=RATES):
    """The parameters after each step."""
    optimizer = make_optimizer(config, lambda step: jnp.asarray(rates)[step], params)

    @jax.jit
    def step(params, state, grads):
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    state, history = optimizer.init(params), []
    for grads in gradients:
        params, state = step(params, state, grads)
        history.append(params)
    return history


def tensorflow(make, params, gradients):
    """The parameters after each step of a TF1 optimizer, made with a callable learning rate."""
    tf = needs.tensorflow()
    now = iter(RATES)
    optimizer = make(lambda: next(now))
    variables = jax.tree.map(tf.Variable, params)
    history = []
    for grads in gradients:
        optimizer.apply_gradients(zip(jax.tree.leaves(grads), jax.tree.leaves(variables), strict=True))
        history.append(jax.tree.map(lambda variable: variable.numpy(), variables))
    return history


def transcription(start, update, params, gradients, rates=RATES):
    """Runs `update(w, g, slots, lr, t) -> w` in float64 on each array; `start` gives the slots' first values."""

    def run(w, *grads):
        w, history = w.astype(np.float64), []
        slots = {name: np.full_like(w, value) for name, value in start.items()}
        for t, (g, lr) in enumerate(zip(grads, rates, strict=False), start=1):
            w = update(w, g.astype(np.float64), slots, lr, t)
            history.append(w)
        return np.stack(history)

    stacked = jax.tree.map(run, params, *gradients)
    return [jax.tree.map(lambda x, t=t: x[t], stacked) for t in range(len(gradients))]


def assert_same(a, b, rtol=1e-6):
    for step, (x, y) in enumerate(zip(a, b, strict=True)):
        jax.tree.map(lambda p, q, step=step: np.testing.assert_allclose(p, q, rtol, rtol / 4, err_msg=f"{step=}"), x, y)


def rmsprop_update(w, g, slots, lr, t):
    slots["rms"] = 0.9 * slots["rms"] + 0.1 * g**2
    slots["momentum"] = 0.9 * slots["momentum"] + lr * g / np.sqrt(slots["rms"] + 1e-3)
    return w - slots["momentum"]


RMSPROP_START = {"rms": 1.0, "momentum": 0.0}


def adam_direction(g, slots, t):
    slots["m"] = 0.9 * slots["m"] + 0.1 * g
    slots["v"] = 0.999 * slots["v"] + 0.001 * g**2
    return slots["m"] / (1 - 0.9**t) / (np.sqrt(slots["v"] / (1 - 0.999**t)) + 1e-3)


ADAM_START = {"m": 0.0, "v": 0.0}


def test_rmsprop_is_tensorflows():
    tf = needs.tensorflow()
    params, gradients = problem()
    found = ours(config_of(name="rmsprop"), params, gradients)
    make = functools.partial(tf.compat.v1.train.RMSPropOptimizer, decay=0.9, momentum=0.9, epsilon=1e-3)
    assert_same(found, tensorflow(make, params, gradients))
    assert_same(found, transcription(RMSPROP_START, rmsprop_update, params, gradients))


def test_sgd_is_tensorflows_momentum():
    tf = needs.tensorflow()
    params, gradients = problem()
    make = functools.partial(tf.compat.v1.train.MomentumOptimizer, momentum=0.9)
    assert_same(ours(config_of(name="sgd"), params, gradients), tensorflow(make, params, gradients))


def test_adamw_is_keras_and_its_paper():
    keras = needs.keras()
    params, gradients = problem()
    found = ours(config_of(name="adamw", weight_decay=0.1, weight_decay_mode="decoupled"), params, gradients)

    def update(w, g, slots, lr, t):
        return w - lr * (adam_direction(g, slots, t) + 0.1 * w)

    # The bias correction 1 - 0.999^t keeps five digits in float32.
    assert_same(found, transcription(ADAM_START, update, params, gradients), rtol=2e-5)
    # Keras adds epsilon before the bias correction, so the comparison is at a negligible epsilon.
    config = config_of(name="adamw", weight_decay=0.1, weight_decay_mode="decoupled", epsilon=1e-12)
    optimizer = keras.optimizers.AdamW(0.1, weight_decay=0.1, epsilon=1e-12)
    variables = [keras.Variable(x) for x in jax.tree.leaves(params)]
    for rate, grads in zip(RATES, gradients, strict=True):
        optimizer.learning_rate = rate
        optimizer.apply([keras.ops.convert_to_tensor(x) for x in jax.tree.leaves(grads)], variables)
    for a, b in zip(jax.tree.leaves(ours(config, params, gradients)[-1]), variables, strict=True):
        np.testing.assert_allclose(a, b.numpy(), rtol=1e-4, atol=1e-5)


def test_lamb_is_its_paper():
    params, gradients = problem()
    config = config_of(name="lamb", weight_decay=0.1, weight_decay_mode="decoupled")

    def update(w, g, slots, lr, t):
        direction = adam_direction(g, slots, t) + 0.1 * w
        return w - lr * np.linalg.norm(w) / np.linalg.norm(direction) * direction

    assert_same(ours(config, params, gradients), transcription(ADAM_START, update, params, gradients), rtol=2e-5)


# Weight decay and clipping.


def test_l2_weight_decay_goes_through_rmsprop():
    params, gradients = problem()

    def update(w, g, slots, lr, t):
        return rmsprop_update(w, g + 0.3 * w, slots, lr, t)

    found = ours(config_of(weight_decay=0.3), params, gradients)
    assert_same(found, transcription(RMSPROP_START, update, params, gradients), rtol=2e-6)


@pytest.mark.parametrize("name", ["rmsprop", "sgd", "adamw", "lamb"])
def test_l2_weight_decay_is_the_gradient_of_the_penalty(name):
    params, gradients = problem()

    def penalty(params):
        return sum(0.5 * 0.3 * jnp.sum(w**2) for w in jax.tree.leaves(params))

    # One step: later ones differ in the parameters.
    penalised = jax.tree.map(jnp.add, gradients[0], jax.grad(penalty)(params))
    found = ours(config_of(name=name, weight_decay=0.3), params, gradients[:1])
    assert_same(found, ours(config_of(name=name), params, [penalised]))


@pytest.mark.parametrize("name", ["rmsprop", "sgd"])
def test_decoupled_weight_decay_stays_out_of_the_momentum(name):
    params, gradients = problem()

    def update(w, g, slots, lr, t):
        if name == "rmsprop":
            return rmsprop_update(w, g, slots, lr, t) - lr * 0.3 * w
        slots["momentum"] = 0.9 * slots["momentum"] + g
        return w - lr * slots["momentum"] - lr * 0.3 * w

    found = ours(config_of(name=name, weight_decay=0.3, weight_decay_mode="decoupled"), params, gradients)
    assert_same(found, transcription(RMSPROP_START, update, params, gradients), rtol=2e-6)


@pytest.mark.parametrize("mode", ["l2", "decoupled"])
def test_factors_multiply_weight_decay(mode):
    params = {"a": {"kernel": jnp.float32(2.0), "bias": jnp.float32(2.0)}, "head": {"kernel": jnp.float32(2.0)}}
    config = config_of(name="sgd", weight_decay=0.1, weight_decay_mode=mode)
    config.optimizer.weight_decay_mask = (("bias$", 0.0), ("^head/", 0.5), (".*", 1.0))
    found = ours(config, params, [jax.tree.map(jnp.zeros_like, params)], rates=[1.0])[0]
    assert found["a"]["kernel"] == pytest.approx(1.8)
    assert found["a"]["bias"] == 2.0
    assert found["head"]["kernel"] == pytest.approx(1.9)


def test_clipping_takes_the_norm_of_gradients_and_penalty_together():
    params = {"a": jnp.float32(3.0), "b": jnp.float32(0.0)}
    grads = {"a": jnp.float32(0.0), "b": jnp.float32(4.0)}
    config = config_of(name="sgd", weight_decay=1.0, clip_norm=1.0)
    found = ours(config, params, [grads], rates=[1.0])[0]  # gradient (3, 4), of norm 5
    assert found["a"] == pytest.approx(3 - 0.6)
    assert found["b"] == pytest.approx(-0.8)
    config.optimizer.clip_norm = 6.0
    assert ours(config, params, [grads], rates=[1.0])[0]["b"] == -4.0


def test_default_mask_decays_kernels_alone():
    params = {
        "stem": {"conv": {"kernel": jnp.zeros((3, 3, 3, 8))}, "bn": {"scale": jnp.zeros(8), "bias": jnp.zeros(8)}},
        "head": {"kernel": jnp.zeros((8, 2)), "bias": jnp.zeros(2)},
    }
    assert parameter_factors(defaults(), "weight_decay_mask", params) == {
        "stem": {"conv": {"kernel": 1.0}, "bn": {"scale": 0.0, "bias": 0.0}},
        "head": {"kernel": 1.0, "bias": 0.0},
    }
    shapes = jax.eval_shape(lambda: params)
    assert describe_factors(defaults(), "weight_decay_mask", shapes) == [
        "weight decay x 0 by '(bias|scale)$': 3 parameters, 18 values, first head/bias",
        "weight decay x 1 by '.*': 2 parameters, 232 values, first head/kernel",
    ]


def test_default_multipliers_are_1():
    params = {"head": {"kernel": jnp.zeros((8, 2)), "bias": jnp.zeros(2)}}
    assert parameter_factors(defaults(), "learning_rate_multipliers", params) == {"head": {"kernel": 1.0, "bias": 1.0}}
    assert describe_factors(defaults(), "learning_rate_multipliers", params) == [
        "learning rate x 1 by '.*': 2 parameters, 18 values, first head/bias"
    ]


def test_rules_that_decide_nothing_are_told():
    config = config_of(weight_decay_mask=((".*", 1.0), ("kernal", 0.0)))
    lines = describe_factors(config, "weight_decay_mask", {"a": jnp.zeros(3)})
    assert lines[1] == "weight decay x 0 by 'kernal': 0 parameters, 0 values"


@pytest.mark.parametrize("field", FACTORS)
def test_every_unmatched_parameter_is_listed(field):
    params = {"a": {"kernel": 0.0, "bias": 0.0}, "b": {"scale": 0.0}}
    with pytest.raises(UserError, match=rf"config\.optimizer\.{field} matches none of a/bias, b/scale;"):
        make_optimizer(config_of(**{field: (("kernel", 1.0),)}), lambda step: 0.1, params)


# Multipliers of the learning rate.

KINDS = pytest.mark.parametrize("name", ["rmsprop", "sgd", "adamw", "lamb"])
MODES = pytest.mark.parametrize("mode", ["l2", "decoupled"])


def updates_of(config, params, gradients):
    """The updates of each step, at parameters that stay, and the last state."""
    optimizer = make_optimizer(config, lambda step: jnp.asarray(RATES)[step], params)
    state, history = optimizer.init(params), []
    for grads in gradients:
        updates, state = optimizer.update(grads, state, params)
        history.append(updates)
    return history, state


@KINDS
@MODES
def test_multipliers_scale_finished_updates_exactly(name, mode):
    params, gradients = problem()
    fields = {"name": name, "weight_decay": 0.3, "weight_decay_mode": mode, "clip_norm": 1.0}
    plain, plain_state = updates_of(config_of(**fields), params, gradients[:5])
    rules = (("^conv/", 0.1), (".*", 1.0))
    scaled, state = updates_of(config_of(learning_rate_multipliers=rules, **fields), params, gradients[:5])
    for a, b in zip(plain, scaled, strict=True):
        np.testing.assert_array_equal(b["conv"]["kernel"], a["conv"]["kernel"] * np.float32(0.1))
        np.testing.assert_array_equal(b["bn"]["scale"], a["bn"]["scale"])
    # What the optimizer remembers does not know of multipliers.
    jax.tree.map(np.testing.assert_array_equal, jax.tree.leaves(state), jax.tree.leaves(plain_state))


def test_a_multiplied_step_by_hand():
    params = {"a": jnp.float32(2.0), "b": jnp.float32(2.0)}
    config = config_of(name="rmsprop", weight_decay=0.1, weight_decay_mode="decoupled", decay=0.5, epsilon=0.0)
    config.optimizer.learning_rate_multipliers = (("a", 0.5), ("b", 2.0))
    # The mean square 0.5 * 1 + 0.5 * 7 is 4: a step of lr * sqrt(7) / 2 + lr * 0.1 * 2.
    grads = jax.tree.map(lambda _: jnp.sqrt(jnp.float32(7.0)), params)
    found = ours(config, params, [grads], rates=[0.4])[0]
    whole = 0.4 * (math.sqrt(7) / 2 + 0.1 * 2)
    assert found["a"] == pytest.approx(2 - 0.5 * whole)
    assert found["b"] == pytest.approx(2 - 2.0 * whole)


@KINDS
@MODES
def test_frozen_parameters_stay_and_the_others_train_as_if_alone(name, mode):
    params, gradients = problem()
    fields = {"name": name, "weight_decay": 0.3, "weight_decay_mode": mode, "clip_norm": 0.5}
    found = ours(config_of(learning_rate_multipliers=(("^conv/", 0.0), (".*", 0.5)), **fields), params, gradients)
    alone = [{"bn": grads["bn"]} for grads in gradients]
    expected = ours(config_of(learning_rate_multipliers=((".*", 0.5),), **fields), {"bn": params["bn"]}, alone)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a["conv"]["kernel"], params["conv"]["kernel"])
        np.testing.assert_array_equal(a["bn"]["scale"], b["bn"]["scale"])
    assert not np.array_equal(found[-1]["bn"]["scale"], params["bn"]["scale"])


@KINDS
def test_frozen_parameters_have_no_optimizer_state(name):
    params, gradients = problem()
    config = config_of(name=name, learning_rate_multipliers=(("^conv/", 0.0), (".*", 1.0)))
    _, state = updates_of(config, params, gradients[:1])
    assert {x.shape for x in jax.tree.leaves(state)} <= {(), (4,)}  # those of bn/scale, and counts


def test_all_may_be_frozen():
    params, gradients = problem()
    config = config_of(learning_rate_multipliers=((".*", 0.0),), weight_decay=0.1, clip_norm=1.0)
    jax.tree.map(np.testing.assert_array_equal, ours(config, params, gradients)[-1], params)
