"""Losses and smoothed targets against TensorFlow and Keras."""

import jax
import jax.numpy as jnp
import needs
import numpy as np
import pytest

from effv2_jax.learning.losses import make_loss, smoothed_targets

LABELS = np.array([0, 3, 6, 3, 1], np.int32)
LOGITS = np.random.default_rng(0).normal(0, 5, (5, 7)).astype(np.float32)
ONE_HOT = np.eye(7, dtype=np.float32)[LABELS]


def test_smoothed_softmax_targets_by_hand():
    targets = smoothed_targets(jnp.array([2, 0]), 4, 0.1, "softmax")
    assert targets.dtype == jnp.float32
    np.testing.assert_allclose(targets, [[0.025, 0.025, 0.925, 0.025], [0.925, 0.025, 0.025, 0.025]], rtol=1e-6)


def test_smoothed_sigmoid_targets_by_hand():
    np.testing.assert_allclose(smoothed_targets(jnp.array([1]), 3, 0.1, "sigmoid"), [[0.05, 0.95, 0.05]], rtol=1e-6)


@pytest.mark.parametrize("name", ["softmax", "sigmoid"])
def test_without_smoothing_targets_are_one_hot(name):
    np.testing.assert_array_equal(smoothed_targets(LABELS, 7, 0.0, name), ONE_HOT)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.4])
def test_softmax_loss_is_tensorflows(smoothing):
    tf = needs.tensorflow()
    loss = make_loss("softmax")(LOGITS, smoothed_targets(LABELS, 7, smoothing, "softmax"))
    released = tf.compat.v1.losses.softmax_cross_entropy(
        ONE_HOT, LOGITS, label_smoothing=smoothing, reduction=tf.compat.v1.losses.Reduction.NONE
    )
    np.testing.assert_allclose(loss, released, rtol=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.4])
def test_sigmoid_loss_is_the_sum_over_classes_of_keras_binary_crossentropy(smoothing):
    keras = needs.keras()
    loss = make_loss("sigmoid")(LOGITS, smoothed_targets(LABELS, 7, smoothing, "sigmoid"))
    mean = keras.losses.BinaryCrossentropy(from_logits=True, label_smoothing=smoothing, reduction=None)(ONE_HOT, LOGITS)
    assert loss.shape == (5,)
    np.testing.assert_allclose(loss, 7 * np.asarray(mean), rtol=1e-5)


def test_several_labels_an_example():
    tf = needs.tensorflow()
    several = np.array([[1, 1, 0, 0, 0, 0, 0], [0, 0, 0, 0, 1, 1, 1]], np.float32)
    sigmoid = tf.reduce_sum(tf.nn.sigmoid_cross_entropy_with_logits(several, LOGITS[:2]), -1)
    np.testing.assert_allclose(make_loss("sigmoid")(LOGITS[:2], several), sigmoid, rtol=1e-5)
    shares = several / several.sum(1, keepdims=True)
    softmax = tf.nn.softmax_cross_entropy_with_logits(shares, LOGITS[:2])
    np.testing.assert_allclose(make_loss("softmax")(LOGITS[:2], shares), softmax, rtol=1e-5)


def test_targets_of_several_labels():
    labels = np.array([[1, 0, -1], [6, -1, -1], [4, 5, 4]], np.int32)  # the last one twice, and counted once
    several = np.array([[1, 1, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0, 1], [0, 0, 0, 0, 1, 1, 0]], np.float32)
    np.testing.assert_array_equal(smoothed_targets(labels, 7, 0.0, "sigmoid"), several)
    shares = several / np.array([[2], [1], [2]])
    np.testing.assert_allclose(smoothed_targets(labels, 7, 0.1, "softmax"), 0.9 * shares + 0.1 / 7, rtol=1e-6)


@pytest.mark.parametrize("name", ["softmax", "sigmoid"])
def test_loss_and_gradient_are_finite_and_float32_at_extreme_bfloat16_logits(name):
    logits = jnp.array([[1e4, -1e4, 0.0]], jnp.bfloat16)
    loss, gradient = jax.value_and_grad(lambda x: make_loss(name)(x, jnp.array([[0.0, 0.5, 0.5]])).sum())(logits)
    assert loss.dtype == jnp.float32
    assert np.isfinite(loss) and np.isfinite(np.asarray(gradient, np.float32)).all()


@pytest.mark.parametrize("name", ["softmax", "sigmoid"])
def test_smoothing_commutes_with_mixing(name):
    weight = 0.7
    smoothed = smoothed_targets(LABELS, 7, 0.1, name)
    mixed_after = weight * smoothed + (1 - weight) * smoothed[::-1]
    mixed_before = weight * ONE_HOT + (1 - weight) * ONE_HOT[::-1]
    offset = 0.1 / 7 if name == "softmax" else 0.05
    np.testing.assert_allclose(mixed_after, 0.9 * mixed_before + offset, atol=1e-6)
