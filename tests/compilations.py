"""Counts what XLA is asked to compile and what it does compile, from JAX's own log and events."""

import logging

import jax

from effv2_jax.network.cpu_kernels import compiler_options

_LOGGER = logging.getLogger("jax._src.interpreters.pxla")
_counters: list["CompileCounter"] = []


def _on_event(event: str, **_: object) -> None:
    for counter in _counters:
        counter.hits += event == "/jax/compilation_cache/cache_hits"
        counter.misses += event == "/jax/compilation_cache/cache_misses"


jax.monitoring.register_event_listener(_on_event)


class CompileCounter(logging.Handler):
    """While entered: the programs asked for, by name and thread, and how many the cache on disk had or had not."""

    def __init__(self):
        super().__init__()
        self.requests: list[tuple[str, str]] = []  # name, thread
        self.hits = self.misses = 0

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self.requests]

    def emit(self, record):
        message = record.getMessage()
        if message.startswith("Compiling"):
            self.requests.append((message.split()[1], record.threadName))

    def __enter__(self):
        self.level_before, self.propagate_before = _LOGGER.level, _LOGGER.propagate
        _LOGGER.setLevel(logging.DEBUG)
        _LOGGER.propagate = False
        _LOGGER.addHandler(self)
        _counters.append(self)
        return self

    def __exit__(self, *_):
        _counters.remove(self)
        _LOGGER.removeHandler(self)
        _LOGGER.setLevel(self.level_before)
        _LOGGER.propagate = self.propagate_before


compiler_options("cpu")  # compiles a probe, once a process, which is nobody's to count
