"""Crops and resizing of one image, as in google/automl `efficientnetv2/preprocessing.py` and `preprocess_legacy.py`."""

import math

import cv2
import numpy as np

from effv2_jax.data.images.decode import Box, Picture
from effv2_jax.errors import check_known

# Half-pixel centres and no antialiasing, as in tf.image.resize with antialias=False. 'bicubic' is the cubic kernel with
# a = -0.75. V1 used the same kernel of TensorFlow 1, whose op places output pixel i at i * scale instead of
# (i + 0.5) * scale - 0.5 and thereby shifts the image by up to half an input pixel. Here values are rounded to uint8;
# the released code truncates them before RandAugment and otherwise keeps floats.
INTERPOLATIONS = {"bilinear": cv2.INTER_LINEAR, "bicubic": cv2.INTER_CUBIC}
EVALUATION_CROPS = ("v2", "v1", "center", "squash")
CROP_PADDING = 32
SQUASH_FROM = 320  # pixels; 'v2' crops only below this size
MAX_ATTEMPTS = 100


def resize(image: np.ndarray, size: int, interpolation: str) -> np.ndarray:
    """Resizes uint8 [H, W, 3] to uint8 [size, size, 3]; the aspect ratio is not kept."""
    check_known("config.data.interpolation", interpolation, INTERPOLATIONS)
    return cv2.resize(image, (size, size), interpolation=INTERPOLATIONS[interpolation])


def random_crop_box(
    height: int, width: int, rng: np.random.Generator, area: tuple[float, float], aspect_ratio: tuple[float, float]
) -> Box:
    """(top, left, height, width) of a random crop, distributed as TensorFlow's `sample_distorted_bounding_box`.

    The aspect ratio (width / height) is uniform in its range. The height is uniform among the integers between those
    that give the smallest and the largest area and that fit into the image; it moves by one if rounding the width
    puts the area out of range. The position is uniform (TensorFlow's op excludes the last row and column). The crop is
    the whole image after MAX_ATTEMPTS ratios that do not fit, or if `area` starts at 1.

    The released V1 pipeline makes 10 attempts and then crops at the centre. It also requires that a tenth of the image
    is covered (min_object_covered=0.1), so its areas, documented as starting at 0.08, start at 0.1 of the image.
    """
    if area[0] == 1:
        return 0, 0, height, width
    smallest, largest = area[0] * height * width, area[1] * height * width
    for _ in range(MAX_ATTEMPTS):
        ratio = rng.uniform(*aspect_ratio)
        low = round(math.sqrt(smallest / ratio))
        high = round(math.sqrt(largest / ratio))
        if round(high * ratio) > width:
            high = int((width + 0.5 - 1e-7) / ratio)  # the largest height whose rounded width fits
        high = min(high, height)
        crop_height = int(rng.integers(low, high + 1)) if low < high else high
        if crop_height * round(crop_height * ratio) < smallest:
            crop_height += 1
        if crop_height * round(crop_height * ratio) > largest:
            crop_height -= 1
        crop_width = round(crop_height * ratio)
        fits = 0 < crop_height <= height and 0 < crop_width <= width
        if fits and smallest <= crop_height * crop_width <= largest:
            top = int(rng.integers(height - crop_height + 1))
            left = int(rng.integers(width - crop_width + 1))
            return top, left, crop_height, crop_width
    return 0, 0, height, width


def random_resized_crop(
    picture: Picture,
    size: int,
    rng: np.random.Generator,
    area: tuple[float, float],
    aspect_ratio: tuple[float, float],
    interpolation: str,
    scaled: bool,
) -> np.ndarray:
    """A `random_crop_box`, resized to uint8 [size, size, 3]. If `scaled`, large crops are decoded at reduced scale."""
    box = random_crop_box(picture.height, picture.width, rng, area, aspect_ratio)
    return resize(picture.crop(box, size if scaled else 0), size, interpolation)


def random_flip(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Flips the image horizontally with probability 0.5."""
    return cv2.flip(image, 1) if rng.random() < 0.5 else image


def evaluation_crop(image: np.ndarray, size: int, rule: str, interpolation: str) -> np.ndarray:
    """Crops uint8 [H, W, 3] for evaluation and resizes the crop to [size, size, 3].

    Rules: 'v2' takes the central square of side int(size / (size + 32) * short side) below 320 px and the whole image
    from there on. 'v1' takes the square at every size, with its offset rounded up. 'center' takes the largest central
    square, as torchvision does. 'squash' takes the whole image.
    """
    check_known("config.data.evaluation_crop", rule, EVALUATION_CROPS)
    if rule in ("v1", "center") or (rule == "v2" and size < SQUASH_FROM):
        height, width = image.shape[:2]
        padding = 0 if rule == "center" else CROP_PADDING
        side = max(1, size * min(height, width) // (size + padding))
        round_up = 1 if rule == "v1" else 0
        top, left = (height - side + round_up) // 2, (width - side + round_up) // 2
        image = image[top : top + side, left : left + side]
    return resize(image, size, interpolation)
