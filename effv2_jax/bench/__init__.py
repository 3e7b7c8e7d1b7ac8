"""Benchmarks: each module measures one thing, ours and the alternatives in one run, and prints one table."""

__all__ = ["baseline", "input", "parity", "peers", "program", "stages", "step"]
