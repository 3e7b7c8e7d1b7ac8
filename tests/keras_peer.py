"""Our variables from a Keras EfficientNetV2, layer by layer by name: an independent network for the tests."""

from typing import Any

import numpy as np

from effv2_jax.architecture import Architecture

# Ours -> Keras', within a block (keras/src/applications/efficientnet_v2.py).
NAMES = {
    "expand_conv": "expand_conv",
    "expand_bn": "expand_bn",
    "depthwise_conv": "dwconv2",
    "depthwise_bn": "bn",
    "project_conv": "project_conv",
    "project_bn": "project_bn",
}


def keras_block_names(architecture: Architecture) -> list[str]:
    """'block1a_', 'block2a_', 'block2b_', ...: a new number where the block's shape changes."""
    names: list[str] = []
    stage, letter, previous = 0, 0, None
    for block in architecture.blocks:
        shape = (block.kind, block.kernel_size, block.expand_ratio, block.output_filters, block.se_ratio)
        letter = letter + 1 if shape == previous else 0
        stage += letter == 0
        previous = shape
        names.append(f"block{stage}{chr(97 + letter)}_")
    return names


def variables_of(keras_model: Any, architecture: Architecture) -> dict[str, Any]:
    """{'params', 'batch_stats'} of `EfficientNet` with the weights of a Keras model."""
    params: dict[str, Any] = {}
    stats: dict[str, Any] = {}
    layers = {layer.name: [np.asarray(weight) for weight in layer.get_weights()] for layer in keras_model.layers}

    def conv(kernel: np.ndarray, *bias: np.ndarray) -> dict[str, np.ndarray]:
        if kernel.shape[3] == 1 and kernel.shape[0] > 1:  # depthwise (k, k, C, 1)
            kernel = kernel.transpose(0, 1, 3, 2)
        return {"kernel": kernel} | ({"bias": bias[0]} if bias else {})

    def put(path: tuple[str, ...], keras_name: str) -> None:
        target, target_stats = params, stats
        for name in path[:-1]:
            target = target.setdefault(name, {})
        if path[-1].endswith("_bn"):
            for name in path[:-1]:
                target_stats = target_stats.setdefault(name, {})
            scale, bias, mean, var = layers[keras_name]
            target[path[-1]] = {"scale": scale, "bias": bias}
            target_stats[path[-1]] = {"mean": mean, "var": var}
        else:
            target[path[-1]] = conv(*layers[keras_name])

    put(("stem_conv",), "stem_conv")
    put(("stem_bn",), "stem_bn")
    for index, keras_name in enumerate(keras_block_names(architecture)):
        for ours, theirs in NAMES.items():
            if keras_name + theirs in layers:
                put((f"block_{index}", ours), keras_name + theirs)
        if keras_name + "se_reduce" in layers:
            put((f"block_{index}", "squeeze_excite", "reduce"), keras_name + "se_reduce")
            put((f"block_{index}", "squeeze_excite", "expand"), keras_name + "se_expand")
    put(("head_conv",), "top_conv")
    put(("head_bn",), "top_bn")
    kernel, bias = layers["predictions"]
    params["classifier"] = {"kernel": kernel, "bias": bias}
    return {"params": params, "batch_stats": stats}


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
