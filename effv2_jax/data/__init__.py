"""The input pipeline: sources of examples, image decoding, augmentation, batches, and preparation of data sets."""

__all__ = ["images", "inspection", "pipeline", "preparation", "source", "sources"]
