"""Preprocessing of images of any kind to the input that a network's weights expect."""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from effv2_jax.data.images.crop import evaluation_crop
from effv2_jax.data.images.decode import BrokenImage, decode, decode_with_pillow
from effv2_jax.network.model import NORMALIZATIONS

Image = Any  # a path, the bytes of a file, a uint8 array [H, W, 3] or [H, W], or a PIL image


@dataclasses.dataclass(frozen=True)
class Preprocess:
    """Evaluation preprocessing: `preprocess(images)` is the model's input, float32 [B, image_size, image_size, 3].

    Fields as in the config: evaluation.image_size, data.evaluation_crop, data.interpolation, data.normalization.
    """

    image_size: int
    crop: str
    interpolation: str
    normalization: str

    def __call__(self, images: Image | Sequence[Image]) -> np.ndarray:
        """Preprocesses one `Image` or a list of them.

        Raises:
          decode.BrokenImage: (a ValueError) an image cannot be read; the message names its file.
        """
        several = isinstance(images, (list, tuple))
        if several and not images:
            return np.zeros((0, self.image_size, self.image_size, 3), np.float32)
        return self.normalize(np.stack([self.pixels(image) for image in (images if several else [images])]))

    def pixels(self, image: Image) -> np.ndarray:
        """Crops and resizes one image to uint8 [image_size, image_size, 3]."""
        if isinstance(image, (str, os.PathLike)):
            try:
                return self.pixels(Path(image).read_bytes())
            except BrokenImage as error:
                raise BrokenImage(f"{os.fspath(image)}: {error}") from None
        if isinstance(image, (bytes, bytearray)):
            image = decode(bytes(image))
        elif not isinstance(image, np.ndarray):
            image = decode_with_pillow(image)
        if image.ndim == 2:
            image = np.repeat(image[..., None], 3, axis=2)
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise ValueError(
                f"an image must be uint8 [H, W, 3] or [H, W], not {image.dtype} {list(image.shape)}; pass several "
                "images as a list"
            )
        return evaluation_crop(image, self.image_size, self.crop, self.interpolation)

    def normalize(self, pixels_BxSxSx3: np.ndarray) -> np.ndarray:
        """Normalizes uint8 pixels to float32 on the host; `model.normalize` does the same on a device."""
        offset, scale = (np.array(values, np.float32) for values in NORMALIZATIONS[self.normalization])
        return (pixels_BxSxSx3.astype(np.float32) - offset) / scale
