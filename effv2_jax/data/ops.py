"""The operations of AutoAugment and RandAugment on one image, uint8 [H, W, 3] to uint8 [H, W, 3].

Semantics of google/automl `efficientnetv2/autoaugment.py` at 6a54c87, which follow Pillow's but for the marked places.
Arguments are physical (degrees, pixels, factors, bits); `randaugment.py` maps magnitudes to them. No operation changes
its input.
"""

import math

import cv2
import numpy as np

FILL = 128  # of pixels that come from outside the image


def blend(degenerate: np.ndarray, image: np.ndarray, factor: float) -> np.ndarray:
    """degenerate + factor * (image - degenerate), clipped, with fractions cut off; factor 1 is the image itself."""
    if factor == 1:
        return image
    start = degenerate.astype(np.float32)
    mixed = start + np.float32(factor) * (image.astype(np.float32) - start)
    return np.clip(mixed, 0, 255).astype(np.uint8)


def autocontrast(image: np.ndarray) -> np.ndarray:
    """Stretches each channel to 0..255; a channel of one value stays."""
    levels = np.arange(256, dtype=np.float32)
    tables = np.empty((1, 256, 3), np.uint8)
    for channel in range(3):
        low, high = np.float32(image[..., channel].min()), np.float32(image[..., channel].max())
        if high > low:
            scale = np.float32(255) / (high - low)
            tables[0, :, channel] = np.clip(levels * scale - low * scale, 0, 255)
        else:
            tables[0, :, channel] = levels
    return cv2.LUT(image, tables)


def equalize(image: np.ndarray) -> np.ndarray:
    """Flattens the histogram of each channel with Pillow's whole-number steps."""
    tables = np.empty((1, 256, 3), np.uint8)
    for channel in range(3):
        histogram = np.bincount(image[..., channel].ravel(), minlength=256)
        step = (histogram.sum() - histogram[histogram > 0][-1]) // 255
        if step:
            below = np.concatenate([[0], ((histogram.cumsum() + step // 2) // step)[:-1]])
            tables[0, :, channel] = np.clip(below, 0, 255)
        else:
            tables[0, :, channel] = np.arange(256)
    return cv2.LUT(image, tables)


def invert(image: np.ndarray) -> np.ndarray:
    return 255 - image


def posterize(image: np.ndarray, bits: int) -> np.ndarray:
    """Keeps the `bits` highest bits, 0 to 8."""
    return image & np.uint8(256 - (1 << (8 - bits)))


def solarize(image: np.ndarray, threshold: int) -> np.ndarray:
    """Inverts pixels of `threshold` and above; 256 inverts none."""
    return np.where(image < threshold, image, 255 - image)


def solarize_add(image: np.ndarray, addition: int, threshold: int = 128) -> np.ndarray:
    """Adds to the pixels below `threshold`, at most to 255."""
    return np.where(image < threshold, np.clip(image.astype(np.int16) + addition, 0, 255).astype(np.uint8), image)


def color(image: np.ndarray, factor: float) -> np.ndarray:
    """Saturation: 0 is grey."""
    return blend(_grey(image)[..., None], image, factor)


def contrast(image: np.ndarray, factor: float) -> np.ndarray:
    """Blends with one grey of H * W / 256, at most 255.

    The released code means the mean grey, but sums the histogram's counts without their values; from 256 x 256 pixels
    on the grey is white. Networks were trained with it, so it stays.
    """
    grey = np.uint8(min(image.shape[0] * image.shape[1] / 256, 255))
    return blend(np.full((1, 1, 1), grey), image, factor)


def brightness(image: np.ndarray, factor: float) -> np.ndarray:
    """0 is black."""
    return blend(np.zeros((1, 1, 1), np.uint8), image, factor)


def sharpness(image: np.ndarray, factor: float) -> np.ndarray:
    """0 is Pillow's SMOOTH filter; the outermost pixels stay."""
    if min(image.shape[:2]) < 3:
        return image
    kernel = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]], np.float32) / 13
    smooth = image.copy()
    filtered = cv2.filter2D(image, cv2.CV_32F, kernel)
    smooth[1:-1, 1:-1] = np.clip(filtered, 0, 255)[1:-1, 1:-1]
    return blend(smooth, image, factor)


def rotate(image: np.ndarray, degrees: float) -> np.ndarray:
    """Clockwise by `degrees` about the centre."""
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    right, bottom = image.shape[1] - 1, image.shape[0] - 1
    x_offset = (right - (cosine * right - sine * bottom)) / 2
    y_offset = (bottom - (sine * right + cosine * bottom)) / 2
    return _affine(image, ((cosine, -sine, x_offset), (sine, cosine, y_offset)))


def shear_x(image: np.ndarray, level: float) -> np.ndarray:
    return _affine(image, ((1, level, 0), (0, 1, 0)))


def shear_y(image: np.ndarray, level: float) -> np.ndarray:
    return _affine(image, ((1, 0, 0), (level, 1, 0)))


def translate_x(image: np.ndarray, pixels: float) -> np.ndarray:
    """To the left by `pixels`, which do not scale with the image."""
    return _affine(image, ((1, 0, pixels), (0, 1, 0)))


def translate_y(image: np.ndarray, pixels: float) -> np.ndarray:
    """Upwards by `pixels`."""
    return _affine(image, ((1, 0, 0), (0, 1, pixels)))


def cutout(image: np.ndarray, half_side: int, rng: np.random.Generator) -> np.ndarray:
    """Fills a square of side 2 * half_side about a random pixel; what lies outside the image is lost."""
    row, column = int(rng.integers(image.shape[0])), int(rng.integers(image.shape[1]))
    image = image.copy()
    image[max(0, row - half_side) : row + half_side, max(0, column - half_side) : column + half_side] = FILL
    return image


def _affine(image: np.ndarray, output_to_input: tuple[tuple[float, float, float], ...]) -> np.ndarray:
    """Each output pixel (x, y) is the input pixel nearest to output_to_input @ (x, y, 1)."""
    return cv2.warpAffine(
        image,
        np.array(output_to_input, np.float64),
        (image.shape[1], image.shape[0]),
        flags=cv2.INTER_NEAREST | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_CONSTANT,
        borderValue=(FILL, FILL, FILL),
    )


def _grey(image: np.ndarray) -> np.ndarray:
    """Luma [H, W] with TensorFlow's weights, rounded as `tf.image.rgb_to_grayscale` rounds."""
    weights = np.array([0.2989, 0.587, 0.114], np.float32)
    return (image.astype(np.float32) @ weights + np.float32(0.5)).astype(np.uint8)
