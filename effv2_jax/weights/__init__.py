"""Weights in and out: our own format, and those of automl, Keras, timm and torchvision."""

from effv2_jax.weights.bundle import Bundle
from effv2_jax.weights.files import read_weights, write_weights

__all__ = ["Bundle", "read_weights", "write_weights"]
