"""Saved state: whether it is intact, and which config may resume it."""
