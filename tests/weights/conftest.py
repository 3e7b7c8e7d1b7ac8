"""Fixtures of the tests of weights."""

import pytest
from random_weights import B0, random_bundle

from effv2_jax.weights import write_weights

FILES = {"effv2": "w.safetensors", "timm": "t.safetensors", "keras": "k.weights.h5"}


@pytest.fixture(scope="module")
def b0():
    return random_bundle(B0, 10)


@pytest.fixture(scope="module")
def written(b0, tmp_path_factory):
    """A file of each format that we write."""
    folder = tmp_path_factory.mktemp("weights")
    paths = {format: folder / name for format, name in FILES.items()}
    for format, path in paths.items():
        write_weights(b0, path, format)
    return paths
