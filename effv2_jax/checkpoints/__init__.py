"""Saved state: whether it is intact, and which config may resume it."""

__all__ = ["manager", "resume", "workdir"]
