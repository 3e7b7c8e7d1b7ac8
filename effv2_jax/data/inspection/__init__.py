"""Inspection of a data set: counts, broken images, duplicates across splits, and previews of augmented photos."""

__all__ = ["check", "duplicates", "preview"]
