"""Reading and writing of weights in our own format and in those of google/automl, Keras, timm and torchvision."""

from effv2_jax.weights.bundle import Bundle
from effv2_jax.weights.files import read_weights, write_weights

__all__ = ["Bundle", "read_weights", "write_weights"]
