"""Benchmarks: each module is a program that prints one table."""

__all__ = ["baseline", "input", "parity", "peers", "program", "stages", "step"]
