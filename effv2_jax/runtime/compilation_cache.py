"""Compiled programs on disk, so that a restart compiles nothing."""

import os

import jax
from absl import logging
from etils import epath
from jax._src.compilation_cache import decompress_executable  # no public module knows the file format
from jax.experimental.compilation_cache import compilation_cache
from ml_collections import ConfigDict

from effv2_jax.files import is_remote

CACHE = "compilation_cache"  # its folder in a workdir


def use_compilation_cache(config: ConfigDict, workdir: epath.Path) -> None:
    """Keeps compiled programs where `config.compilation.cache` says. Call it before the first compilation of a run."""
    folder = config.compilation.cache
    if folder == "auto":
        folder = os.environ.get("JAX_COMPILATION_CACHE_DIR") or str(workdir / CACHE)
    enabled = folder != "off"
    if enabled:
        # Small programs too: a restart pays for the sum of all.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
        jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_enable_compilation_cache", enabled)
    compilation_cache.reset_cache()  # JAX reads these settings only once


def delete_damaged_programs(workdir: epath.Path) -> None:
    """Deletes the compiled programs in a locked workdir that a killed process left half-written.

    JAX would fail to read them at every start and never overwrite them. Object stores have no half-written files.
    """
    directory = workdir / CACHE
    if is_remote(directory) or not directory.exists():
        return
    for path in directory.glob("*-cache"):
        data = path.read_bytes()
        try:
            decompress_executable(data)
        except Exception as error:  # its class depends on the compressor that JAX found installed
            logging.warning("deleted the damaged compiled program %s: %s", path, error)
            path.unlink()
