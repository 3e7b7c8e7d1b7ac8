"""EfficientNetV2 with progressive learning in JAX (Tan & Le, arXiv 2104.00298)."""

__version__ = "0.1.0"
