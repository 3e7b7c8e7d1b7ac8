"""Random weights of any network."""

import numpy as np

from effv2_jax.network.architecture import get_architecture
from effv2_jax.weights import Bundle
from effv2_jax.weights.bundle import released_preprocess, unflatten_arrays
from effv2_jax.weights.mapping import entries

B0 = get_architecture("efficientnetv2-b0")


def random_bundle(architecture, num_classes, seed=0):
    """A bundle of raw weights drawn from [0.5, 1.5)."""
    rng = np.random.default_rng(seed)
    arrays = {
        entry.path: rng.uniform(0.5, 1.5, entry.shape).astype(np.float32)
        for entry in entries(architecture, num_classes, "effv2")
    }
    return Bundle(architecture, num_classes, {"raw": unflatten_arrays(arrays)}, released_preprocess(architecture))
