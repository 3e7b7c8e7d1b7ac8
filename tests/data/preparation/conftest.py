"""Fixtures of the preparation tests."""

import ilsvrc
import pytest

from effv2_jax.data.preparation import shards


@pytest.fixture
def several_shards(monkeypatch):
    """Shards of five images instead of thousands."""
    monkeypatch.setattr(shards, "IMAGES_PER_SHARD", 5)


@pytest.fixture
def tars(tmp_path):
    """A folder with the tars of a small ImageNet."""
    ilsvrc.write_tars(tmp_path / "tars")
    return tmp_path / "tars"
