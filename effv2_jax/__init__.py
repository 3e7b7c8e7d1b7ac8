"""EfficientNetV2 with progressive learning in JAX (Tan & Le, arXiv 2104.00298)."""

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from effv2_jax.network.model import EfficientNet
    from effv2_jax.weights.bundle import Variables
    from effv2_jax.weights.preprocess import Preprocess

__version__ = "0.1.0"


def load(path: str | os.PathLike) -> "tuple[EfficientNet, Variables, Preprocess]":
    """(model, variables, preprocess) of a file of weights or a run; see `weights.read_weights`.

    `model.apply(variables, preprocess(images))` returns logits, and `model.clone(num_classes=0)` makes a model that
    returns pooled features. With `mutable=['endpoints']`, `apply` also returns the outputs of each resolution.
    """
    from effv2_jax.weights import read_weights

    bundle = read_weights(path)
    return bundle.model, bundle.variables, bundle.preprocess
