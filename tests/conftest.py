"""Fixtures that several tests share."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real photos and weights (EFFV2_TEST_DATA, or `shared/data` beside the checkout)."""
    root = Path(__file__).resolve().parents[1]
    folder = Path(os.environ.get("EFFV2_TEST_DATA", root.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"real photos and weights are not at {folder}; set EFFV2_TEST_DATA to their folder")
    return folder
