"""Crops and resizing of one image, as in google/automl `efficientnetv2/preprocessing.py` and `preprocess_legacy.py`."""

import math

import cv2
import numpy as np

from effv2_jax.data.images.decode import Box, Picture
from effv2_jax.errors import check_known

# Half-pixel centres and no antialiasing, as tf.image.resize with antialias=False. 'bicubic' is the cubic kernel with
# a = -0.75, as is TensorFlow 1's op, which V1 used; but that op puts output pixel i at i * scale and not at
# (i + 0.5) * scale - 0.5, and so shifts the picture by up to half an input pixel. Here values are rounded to uint8, in
# the released code cut off before RandAugment and left as floats otherwise.
INTERPOLATIONS = {"bilinear": cv2.INTER_LINEAR, "bicubic": cv2.INTER_CUBIC}
EVALUATION_CROPS = ("v2", "v1", "center", "squash")
CROP_PADDING = 32
SQUASH_FROM = 320  # pixels: 'v2' crops only below
MAX_ATTEMPTS = 100


def resize(image: np.ndarray, size: int, interpolation: str) -> np.ndarray:
    """uint8 [H, W, 3] to uint8 [size, size, 3]; the aspect ratio is not kept."""
    check_known("config.data.interpolation", interpolation, INTERPOLATIONS)
    return cv2.resize(image, (size, size), interpolation=INTERPOLATIONS[interpolation])


def random_crop_box(
    height: int, width: int, rng: np.random.Generator, area: tuple[float, float], aspect_ratio: tuple[float, float]
) -> Box:
    """(top, left, height, width) of a random crop, as TensorFlow's `sample_distorted_bounding_box` draws it.

    The aspect ratio (width / height) is uniform in its range; the height is uniform among the whole numbers between
    those that give the smallest and the largest area and fit into the image, and moves by one where rounding the
    width has put the area out of its range; the place is uniform (TensorFlow's leaves out the last row and column).
    After MAX_ATTEMPTS ratios that do not fit it is the whole image, and so it is where `area` allows nothing less.

    The released V1 pipeline makes 10 attempts and then crops at the centre. It also asks for a tenth of the image to
    be covered (min_object_covered=0.1), so its areas, said to be from 0.08, are from 0.1 of the image.
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
    """A random crop, resized to uint8 [size, size, 3]; see `random_crop_box`, and `Picture.crop` for `scaled`."""
    box = random_crop_box(picture.height, picture.width, rng, area, aspect_ratio)
    return resize(picture.crop(box, size if scaled else 0), size, interpolation)


def random_flip(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Mirrors left and right with probability 0.5."""
    return cv2.flip(image, 1) if rng.random() < 0.5 else image


def evaluation_crop(image: np.ndarray, size: int, rule: str, interpolation: str) -> np.ndarray:
    """uint8 [H, W, 3] to [size, size, 3] for evaluation.

    'v2': below 320 px the central square of int(size / (size + 32) * short side), else the whole image; 'v1': the
    square at any size, its offset rounded up; 'center': the largest central square, as
    torchvision; 'squash': the whole image.
    """
    check_known("config.data.evaluation_crop", rule, EVALUATION_CROPS)
    if rule in ("v1", "center") or (rule == "v2" and size < SQUASH_FROM):
        height, width = image.shape[:2]
        padding = 0 if rule == "center" else CROP_PADDING
        side = max(1, size * min(height, width) // (size + padding))
        up = 1 if rule == "v1" else 0
        top, left = (height - side + up) // 2, (width - side + up) // 2
        image = image[top : top + side, left : left + side]
    return resize(image, size, interpolation)
