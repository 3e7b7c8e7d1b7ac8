"""Keras' EfficientNetV2 as an independent network for the tests."""

from typing import Any

import numpy as np

from effv2_jax.architecture import Architecture
from effv2_jax.weights.bundle import unflatten
from effv2_jax.weights.mapping import entries


def variables_of(keras_model: Any, architecture: Architecture) -> dict[str, Any]:
    """{'params', 'batch_stats'} of `EfficientNet` with the weights of a Keras model."""
    arrays = {
        f"{layer.name}/{number}": np.asarray(weight)
        for layer in keras_model.layers
        for number, weight in enumerate(layer.get_weights())
    }
    num_classes = arrays["predictions/1"].size
    return unflatten(
        {entry.path: entry.to_ours(arrays[entry.name]) for entry in entries(architecture, num_classes, "keras")}
    )


def randomize(keras_model: Any, seed: int) -> None:
    """Non-trivial weights everywhere: batch norm's scale, bias and statistics too."""
    rng = np.random.default_rng(seed)
    for layer in keras_model.layers:
        weights = layer.get_weights()
        if len(weights) == 4:
            channels = weights[0].shape
            layer.set_weights(
                [
                    rng.uniform(0.7, 1.3, channels),
                    rng.normal(0, 0.2, channels),
                    rng.normal(0, 0.2, channels),
                    rng.uniform(0.7, 1.5, channels),
                ]
            )
        elif len(weights) == 2:
            layer.set_weights([weights[0], rng.normal(0, 0.1, weights[1].shape)])
