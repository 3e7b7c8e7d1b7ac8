"""Compiled programs on disk, so that a restart compiles nothing."""

import os

import jax
from absl import logging
from etils import epath
from jax._src.compilation_cache import decompress_executable  # the one place that knows the format
from jax.experimental.compilation_cache import compilation_cache
from ml_collections import ConfigDict

from effv2_jax.files import is_remote

CACHE = "compilation_cache"  # its folder in a workdir


def use_compilation_cache(config: ConfigDict, workdir: epath.Path) -> None:
    """Keeps compiled programs where `config.compilation.cache` says; before the first compilation of a run."""
    where = config.compilation.cache
    if where == "auto":
        where = os.environ.get("JAX_COMPILATION_CACHE_DIR") or str(workdir / CACHE)
    enabled = where != "off"
    if enabled:
        # Every program, however small: a restart pays for the sum of them.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
        jax.config.update("jax_compilation_cache_dir", where)
    jax.config.update("jax_enable_compilation_cache", enabled)
    compilation_cache.reset_cache()  # JAX looks at these settings once only


def drop_torn_programs(workdir: epath.Path) -> None:
    """Deletes compiled programs of a workdir that a process was killed over; for the run that holds the workdir.

    JAX would find them damaged at every start, and never write them again. Object stores have no half-written files.
    """
    directory = workdir / CACHE
    if is_remote(directory) or not directory.exists():
        return
    for path in directory.glob("*-cache"):
        data = path.read_bytes()
        try:
            decompress_executable(data)
        except Exception as error:  # of whichever compressor JAX found installed
            logging.warning("deleted the damaged compiled program %s: %s", path, error)
            path.unlink()
