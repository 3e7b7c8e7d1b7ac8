"""Moving averages against TensorFlow's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from needs import tensorflow

from effv2_jax.learning.ema import ema_decay, update_ema


@pytest.mark.parametrize("first_step", [0, 89_980])  # where warm-up is everything, and where 0.9999 takes over
def test_parameters_and_statistics_follow_tensorflow(first_step):
    tf = tensorflow()
    rng = np.random.default_rng(0)
    initial = {"params": {"kernel": rng.normal(size=(3, 2))}, "batch_stats": {"mean": rng.normal(size=4)}}
    initial = jax.tree.map(lambda x: x.astype(np.float32), initial)
    global_step = tf.Variable(first_step)
    released = tf.train.ExponentialMovingAverage(0.9999, num_updates=global_step)
    variables = jax.tree.map(tf.Variable, initial)
    leaves = jax.tree.leaves(variables)
    released.apply(leaves)  # creates the averages, at the initial values
    update = jax.jit(lambda ema, new, step: update_ema(ema, new, step, 0.9999, True))
    ours = initial
    for step in range(first_step, first_step + 20):
        new = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), initial)
        jax.tree.map(lambda variable, value: variable.assign(value), variables, new)
        global_step.assign_add(1)  # as the optimizer does before the released code averages
        released.apply(leaves)
        ours = update(ours, new, step)
        for average, variable in zip(jax.tree.leaves(ours), leaves, strict=True):
            np.testing.assert_allclose(average, released.average(variable), rtol=1e-6, atol=1e-6)


def test_decay_by_hand():
    assert ema_decay(0, 0.9999, True) == pytest.approx(2 / 11)
    assert ema_decay(89, 0.9999, True) == pytest.approx(91 / 100)
    # (1 + n) / (10 + n) reaches 0.9999 at n = 89,990.
    assert 1 - ema_decay(80_000, 0.9999, True) == pytest.approx(9 / 80_011, rel=1e-3)
    assert ema_decay(89_990, 0.9999, True) == pytest.approx(0.9999, abs=6e-8)
    assert ema_decay(0, 0.9, False) == pytest.approx(0.9)


def test_without_warmup_the_decay_is_constant():
    averages = update_ema({"a": jnp.float32(1.0)}, {"a": jnp.float32(0.0)}, 0, 0.75, False)
    assert averages["a"] == 0.75


def test_an_average_that_has_arrived_stays():
    values = {"a": jnp.linspace(-3.0, 7.0, 100)}
    np.testing.assert_array_equal(update_ema(values, values, 12, 0.9999, True)["a"], values["a"])


def test_slow_averages_keep_seven_digits():
    # 1 - float32(0.9999) is 1.7e-4 off.
    average = update_ema(jnp.float32(0.0), jnp.float32(1.0), 200_000, 0.9999, True)
    assert average == pytest.approx(1e-4, rel=1e-6)
