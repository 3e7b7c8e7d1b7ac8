"""Classification losses on soft targets."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax


def smoothed_targets(labels: jax.Array, num_classes: int, label_smoothing: float, loss_name: str) -> jax.Array:
    """One-hot targets, smoothed by s: float32 [B, num_classes].

    softmax: (1 - s) * one_hot + s / num_classes; sigmoid: (1 - s) * one_hot + s / 2, as in tf.losses and Keras.
    Smoothing is affine and the weights of a mix sum to 1, so smoothing before and after mixing is the same. Several
    labels share the 1 evenly for softmax and have a 1 each for sigmoid, as on the paper's ImageNet-21k.

    Args:
      labels: int [B] in [0, num_classes), or [B, L], padded with -1.
      num_classes: K.
      label_smoothing: s in [0, 1).
      loss_name: 'softmax' or 'sigmoid'.
    """
    centre = 1 / num_classes if loss_name == "softmax" else 0.5
    targets = jax.nn.one_hot(labels, num_classes, dtype=jnp.float32)  # all zeros for -1
    if labels.ndim == 2:
        targets = targets.max(1)
        targets = targets / jnp.maximum(targets.sum(1, keepdims=True), 1) if loss_name == "softmax" else targets
    return (1 - label_smoothing) * targets + label_smoothing * centre


def make_loss(name: str) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """The loss (logits [B, K], targets [B, K]) -> float32 [B], computed in float32.

    - softmax: cross-entropy, for targets that sum to 1 (several labels share it: the paper's ImageNet-21k).
    - sigmoid: the sum over classes of binary cross-entropies, for any targets in [0, 1]; google/automl
      `efficientnetv2/main.py` calls it 'custom', its 'sigmoid' is the mean over classes.
    """

    def softmax(logits_BxK: jax.Array, targets_BxK: jax.Array) -> jax.Array:
        return optax.softmax_cross_entropy(logits_BxK.astype(jnp.float32), targets_BxK)

    def sigmoid(logits_BxK: jax.Array, targets_BxK: jax.Array) -> jax.Array:
        return optax.sigmoid_binary_cross_entropy(logits_BxK.astype(jnp.float32), targets_BxK).sum(-1)

    return softmax if name == "softmax" else sigmoid
