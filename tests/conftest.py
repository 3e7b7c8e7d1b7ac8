"""Fixtures that several tests share."""

import os
from pathlib import Path

import pytest
from launching import ROOT

# Compile time dominates these tests; processes that they start share the cache too.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".cache" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")
# With the TPU compiler installed JAX would look for a TPU at every start, and tell at length that there is none.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")


@pytest.fixture
def effv2(capsys, monkeypatch):
    """Runs `effv2 ARGUMENTS` in this process, at the root of the project: (exit code, stdout, stderr)."""
    monkeypatch.chdir(ROOT)

    def call(*arguments: object) -> tuple[int, str, str]:
        from effv2_jax.cli.main import main

        code = 0
        try:
            main([str(argument) for argument in arguments])
        except SystemExit as exit_:
            code = exit_.code
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.fixture
def bucket(tmp_path, monkeypatch) -> Path:
    """The folder in which what is written to gs:// lies."""
    from bucket import Bucket
    from etils.epath import backend, gpath

    from effv2_jax import files
    from effv2_jax.runtime import lock

    stored = Bucket(tmp_path / "stored")
    monkeypatch.setattr(backend, "tf_backend", stored)  # etils asks this one where TensorFlow is installed
    monkeypatch.setitem(gpath._PREFIX_TO_BACKEND, "gs", stored)
    monkeypatch.setattr(files, "require", lambda *arguments: None)  # whatever is installed
    monkeypatch.setattr(gpath, "_GCS_BACKENDS", frozenset([stored]))
    monkeypatch.setattr(gpath, "_is_zonal_gcs_bucket", lambda bucket: False)
    monkeypatch.setattr(lock, "HEARTBEAT", 0.1)
    return tmp_path / "stored"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real photos and weights (EFFV2_TEST_DATA, or `shared/data` beside the checkout)."""
    folder = Path(os.environ.get("EFFV2_TEST_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"real photos and weights are not at {folder}; set EFFV2_TEST_DATA to their folder")
    return folder
