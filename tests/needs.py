"""Skips what needs a library that only `make peers` installs."""

import importlib.util
from typing import Any

import pytest


def tensorflow() -> Any:
    """The package, which independent implementations in the tests use."""
    return pytest.importorskip("tensorflow", reason="needs TensorFlow: make peers")


def keras() -> Any:
    """The package, on TensorFlow."""
    tensorflow()
    return pytest.importorskip("keras", reason="needs Keras: make peers")


def needs(peer: str) -> None:
    """A test that compares with one of `bench.peers.PEERS`, which imports it: the order matters to torchvision."""
    others = ("tensorflow", "keras")
    for package in {"timm": ("torch", "timm"), "torchvision": ("torch", "torchvision")}.get(peer, others):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"needs {package}: make peers")
