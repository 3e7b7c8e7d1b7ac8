"""Devices, processes and executables."""

__all__ = ["compilation_cache", "compiler", "isolated_process", "lock", "memory", "mesh", "preemption", "processes"]
