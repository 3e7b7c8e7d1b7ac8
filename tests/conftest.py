"""Fixtures that several tests share."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# Compile time dominates these tests; processes that they start share the cache too.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".cache" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("KERAS_BACKEND", "jax")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real photos and weights (EFFV2_TEST_DATA, or `shared/data` beside the checkout)."""
    folder = Path(os.environ.get("EFFV2_TEST_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"real photos and weights are not at {folder}; set EFFV2_TEST_DATA to their folder")
    return folder
