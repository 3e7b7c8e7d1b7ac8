"""Layers against independent implementations: lowering, initialisers, batch norm over groups, stochastic depth."""

import jax
import jax.numpy as jnp
import needs
import numpy as np
import pytest

from effv2_jax.network import layers
from effv2_jax.network.architecture import Block


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


DEPTHWISE = [(True, kernel_size, stride) for kernel_size in (3, 5) for stride in (1, 2)]
DENSE = [(False, kernel_size, stride) for kernel_size in (1, 3) for stride in (1, 2)]


@pytest.mark.parametrize("size", [8, 9])
@pytest.mark.parametrize(("depthwise", "kernel_size", "stride"), DEPTHWISE + DENSE)
def test_lowerings_equal_tensorflow_forward_and_backward(size, depthwise, kernel_size, stride):
    tf = needs.tensorflow()
    features = 6 if depthwise else 5
    x = normal(0, 2, size, size + 3, 6)
    kernel = normal(1, kernel_size, kernel_size, 1 if depthwise else 6, features)
    weights = normal(2, 2, -(-size // stride), -(-(size + 3) // stride), features)

    x_tf, kernel_tf = tf.constant(x), tf.constant(kernel)
    with tf.GradientTape() as tape:
        tape.watch([x_tf, kernel_tf])
        if depthwise:
            y_tf = tf.nn.depthwise_conv2d(x_tf, tf.transpose(kernel_tf, (0, 1, 3, 2)), [1, stride, stride, 1], "SAME")
        else:
            y_tf = tf.nn.conv2d(x_tf, kernel_tf, stride, "SAME")
        loss = tf.reduce_sum(y_tf * weights)
    dx_tf, dkernel_tf = tape.gradient(loss, [x_tf, kernel_tf])

    for lowering in ("native", "decomposed"):

        def loss_fn(x, kernel, lowering=lowering):
            y = layers.convolution(x, kernel, stride, depthwise, lowering)
            return (y * weights).sum(), y

        (dx, dkernel), y = jax.grad(loss_fn, (0, 1), has_aux=True)(x, kernel)
        np.testing.assert_allclose(y, y_tf, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(dx, dx_tf, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(dkernel, dkernel_tf, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    ("conv", "shape", "fan_out"),
    [
        (layers.Conv(256, 3), (3, 3, 64, 256), 9 * 256),
        (layers.Conv(4096, 3, depthwise=True), (3, 3, 1, 4096), 9),  # not 9 * 4096
        (layers.Conv(128, use_bias=True), (1, 1, 64, 128), 128),
    ],
)
def test_kernels_start_as_an_untruncated_normal_of_fan_out(conv, shape, fan_out):
    channels = shape[3] if conv.depthwise else shape[2]
    kernel = conv.init(jax.random.key(0), jnp.zeros((1, 4, 4, channels)))["params"]["kernel"]
    assert kernel.shape == shape
    deviation = np.sqrt(2 / fan_out)
    np.testing.assert_allclose(np.std(kernel), deviation, rtol=0.05)
    assert np.abs(kernel).max() > 2.5 * deviation  # a truncated normal ends at 2 of its own deviations


def test_batch_norm_over_groups_equals_keras_on_each_group():
    keras = needs.keras()
    x = normal(0, 8, 5, 5, 3) * 4 + 1.5
    scale, bias = normal(1, 3), normal(2, 3)
    module = layers.BatchNorm(group_size=4, epsilon=1e-3)
    stats = {"mean": jnp.array([1.0, 2.0, 3.0]), "var": jnp.array([2.0, 1.0, 0.5])}
    variables = {"params": {"scale": scale, "bias": bias}, "batch_stats": stats}
    y, updates = module.apply(variables, x, train=True, mutable=["group_stats"])
    new = layers.update_batch_stats(stats, updates["group_stats"], 0.9)

    means, variances = [], []
    for group in (x[:4], x[4:]):
        keras_norm = keras.layers.BatchNormalization(momentum=0.9, epsilon=1e-3)
        keras_norm.build(group.shape)
        keras_norm.set_weights([scale, bias, np.array(stats["mean"]), np.array(stats["var"])])
        expected = keras_norm(group, training=True)
        np.testing.assert_allclose(y[len(means) * 4 :][:4], expected, rtol=1e-4, atol=1e-5)
        means.append(keras_norm.moving_mean)
        variances.append(keras_norm.moving_variance)
    np.testing.assert_allclose(new["mean"], np.mean(means, 0), rtol=1e-5)
    np.testing.assert_allclose(new["var"], np.mean(variances, 0), rtol=1e-5)

    np.testing.assert_allclose(
        module.apply(variables, x, train=False),
        (x - stats["mean"]) / np.sqrt(stats["var"] + 1e-3) * scale + bias,
        rtol=1e-5,
        atol=1e-5,
    )


def test_batch_norm_statistics_are_float32_under_bfloat16():
    x = jnp.asarray(normal(0, 64, 8, 8, 2) + 30, jnp.bfloat16)
    module = layers.BatchNorm(dtype=jnp.bfloat16)
    variables = module.init(jax.random.key(0), x, train=False)
    y, updates = module.apply(variables, x, train=True, mutable=["group_stats"])
    assert y.dtype == jnp.bfloat16
    expected = np.asarray(x, np.float64)
    assert updates["group_stats"]["mean"].dtype == jnp.float32
    np.testing.assert_allclose(updates["group_stats"]["mean"][0], expected.mean((0, 1, 2)), rtol=1e-5)
    np.testing.assert_allclose(updates["group_stats"]["var"][0], expected.var((0, 1, 2)), rtol=1e-3)


def test_batch_norm_group_must_divide_the_batch():
    with pytest.raises(ValueError, match="groups of 4 examples do not divide a batch of 6"):
        layers.BatchNorm(group_size=4).init(jax.random.key(0), jnp.zeros((6, 2, 2, 1)), train=True)


def test_stochastic_depth_drops_whole_examples_and_rescales():
    block = Block("mbconv", 3, 1, 4, 8, 8, 0.25)
    module = layers.Residual(block, survival_probability=0.75)
    x = jnp.asarray(normal(0, 400, 2, 2, 8))
    variables = module.init(jax.random.key(0), x, train=False)
    kwargs = {"train": True, "mutable": ["group_stats"]}
    y, _ = module.apply(variables, x, rngs={"dropout": jax.random.key(1)}, **kwargs)
    full, _ = layers.Residual(block).apply(variables, x, **kwargs)
    branch, kept_branch = np.asarray(full - x), np.asarray(y - x)
    dropped = np.abs(kept_branch).max((1, 2, 3)) == 0
    np.testing.assert_allclose(kept_branch[~dropped], branch[~dropped] / 0.75, rtol=1e-3, atol=1e-5)
    assert 0.18 < dropped.mean() < 0.32  # 0.25 +- 3 standard deviations of 400 draws
    np.testing.assert_array_equal(
        module.apply(variables, x, train=False), layers.Residual(block).apply(variables, x, train=False)
    )
