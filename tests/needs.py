"""Skips what needs a library that only `make peers` installs."""

import importlib.util

import pytest


def needs(peer: str) -> None:
    """A test that compares with one of `bench.peers.PEERS`, which imports it: the order matters to torchvision."""
    for package in {"timm": ("torch", "timm"), "torchvision": ("torch", "torchvision")}.get(peer, ("keras",)):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"needs {package}: make peers")
