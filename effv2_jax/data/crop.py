"""Crops and resizing of one image, as in google/automl `efficientnetv2/preprocessing.py` and `preprocess_legacy.py`."""

import math

import cv2
import numpy as np

from effv2_jax.errors import check_known

# Half-pixel centres and no antialiasing, as tf.image.resize. 'bicubic' is Keys' kernel with a = -0.75, as in
# TensorFlow 1, whose legacy op differs only in its corner-aligned centres.
INTERPOLATIONS = {"bilinear": cv2.INTER_LINEAR, "bicubic": cv2.INTER_CUBIC}
EVALUATION_CROPS = ("v2", "v1", "squash")
CROP_PADDING = 32
SQUASH_FROM = 320  # pixels: 'v2' crops only below
MAX_ATTEMPTS = 100


def resize(image: np.ndarray, size: int, interpolation: str) -> np.ndarray:
    """uint8 [H, W, 3] to uint8 [size, size, 3]; the aspect ratio is not kept."""
    check_known("config.data.interpolation", interpolation, INTERPOLATIONS)
    return cv2.resize(image, (size, size), interpolation=INTERPOLATIONS[interpolation])


def random_crop_box(
    height: int, width: int, rng: np.random.Generator, area: tuple[float, float], aspect_ratio: tuple[float, float]
) -> tuple[int, int, int, int]:
    """(top, left, height, width) of a random crop, as TensorFlow's `sample_distorted_bounding_box` draws it.

    The aspect ratio (width / height) is uniform in its range; the height is uniform among those whole numbers that
    give an area in its range and fit into the image; the place is uniform. After MAX_ATTEMPTS ratios that do not fit
    it is the whole image.
    """
    smallest, largest = area[0] * height * width, area[1] * height * width
    for _ in range(MAX_ATTEMPTS):
        ratio = rng.uniform(*aspect_ratio)
        low = round(math.sqrt(smallest / ratio))
        high = min(round(math.sqrt(largest / ratio)), height)
        if round(high * ratio) > width:
            # The width is rounded: take the largest height whose width still fits.
            high = int((width + 0.5 - 1e-7) / ratio)
        if low > high:
            continue
        crop_height = int(rng.integers(low, high + 1))
        crop_width = round(crop_height * ratio)
        if not (0 < crop_height <= height and 0 < crop_width <= width):
            continue
        if not smallest <= crop_height * crop_width <= largest:
            continue
        top = int(rng.integers(0, height - crop_height + 1))
        left = int(rng.integers(0, width - crop_width + 1))
        return top, left, crop_height, crop_width
    return 0, 0, height, width


def random_resized_crop(
    image: np.ndarray,
    size: int,
    rng: np.random.Generator,
    area: tuple[float, float],
    aspect_ratio: tuple[float, float],
    interpolation: str,
) -> np.ndarray:
    """A random crop of uint8 [H, W, 3], resized to [size, size, 3]; see `random_crop_box`."""
    top, left, height, width = random_crop_box(image.shape[0], image.shape[1], rng, area, aspect_ratio)
    return resize(image[top : top + height, left : left + width], size, interpolation)


def random_flip(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Mirrors left and right with probability 0.5."""
    return np.ascontiguousarray(image[:, ::-1]) if rng.random() < 0.5 else image


def evaluation_crop(image: np.ndarray, size: int, rule: str, interpolation: str) -> np.ndarray:
    """uint8 [H, W, 3] to [size, size, 3] for evaluation.

    'v2': below 320 px the central square of int(size / (size + 32) * short side), else the whole image; 'v1': the
    square at any size, its offset rounded up; 'squash': the whole image.
    """
    check_known("config.data.evaluation_crop", rule, EVALUATION_CROPS)
    if rule == "v1" or (rule == "v2" and size < SQUASH_FROM):
        height, width = image.shape[:2]
        side = max(1, int(size / (size + CROP_PADDING) * min(height, width)))
        up = 1 if rule == "v1" else 0
        top, left = (height - side + up) // 2, (width - side + up) // 2
        image = image[top : top + side, left : left + side]
    return resize(image, size, interpolation)
