"""The operations of AutoAugment and RandAugment on one image, uint8 [H, W, 3] to uint8 [H, W, 3].

Semantics are those of google/automl `efficientnetv2/autoaugment.py` at 6a54c87, which follow Pillow except where noted.
Arguments are physical (degrees, pixels, factors, bits); `randaugment.py` maps magnitudes to them. No operation changes
its input.
"""

import math
from collections.abc import Callable

import cv2
import numpy as np

FILL = 128  # the value of pixels from outside the image
_LEVELS = np.arange(256)


def blend(degenerate: np.ndarray, image: np.ndarray, factor: float) -> np.ndarray:
    """degenerate + factor * (image - degenerate), clipped and truncated to integers; factor 1 returns the image."""
    if factor == 1:
        return image
    start = degenerate.astype(np.float32)
    mixed = image.astype(np.float32)
    mixed -= start
    mixed *= np.float32(factor)
    mixed += start
    return np.clip(mixed, 0, 255, out=mixed).astype(np.uint8)


def autocontrast(image: np.ndarray) -> np.ndarray:
    """Stretches each channel to 0..255; a constant channel is unchanged."""

    def table(histogram: np.ndarray) -> np.ndarray:
        low, high = np.flatnonzero(histogram)[[0, -1]].astype(np.float32)
        if low == high:
            return _LEVELS
        scale = np.float32(255) / (high - low)
        return np.clip(_LEVELS.astype(np.float32) * scale - low * scale, 0, 255)

    return _map_channels(image, table)


def equalize(image: np.ndarray) -> np.ndarray:
    """Flattens the histogram of each channel with Pillow's integer arithmetic."""

    def table(histogram: np.ndarray) -> np.ndarray:
        step = (histogram.sum() - histogram[np.flatnonzero(histogram)[-1]]) // 255
        if not step:
            return _LEVELS
        below = histogram.cumsum() - histogram
        return np.where(_LEVELS == 0, 0, np.clip((below + step // 2) // step, 0, 255))

    return _map_channels(image, table)


def invert(image: np.ndarray) -> np.ndarray:
    return 255 - image


def posterize(image: np.ndarray, bits: int) -> np.ndarray:
    """Keeps the `bits` highest bits, 0 to 8; 0 keeps one, because TensorFlow's kernel shifts a byte by at most 7."""
    return image & np.uint8(0xFF << (8 - max(bits, 1)) & 0xFF)


def solarize(image: np.ndarray, threshold: int) -> np.ndarray:
    """Inverts values of at least `threshold`; 256 inverts none.

    The released operation is the same below 256, that is below magnitude 10; it wraps larger thresholds to a byte.
    """
    table = 255 - _LEVELS
    table[:threshold] = _LEVELS[:threshold]
    return _map(image, table)


def solarize_add(image: np.ndarray, addition: int, threshold: int = 128) -> np.ndarray:
    """Adds to values below `threshold`; the result is clipped to 255."""
    table = _LEVELS.copy()
    table[:threshold] = np.clip(table[:threshold] + addition, 0, 255)
    return _map(image, table)


def color(image: np.ndarray, factor: float) -> np.ndarray:
    """Changes saturation; factor 0 is grey."""
    grey = cv2.cvtColor(_grey(image), cv2.COLOR_GRAY2RGB)  # NumPy's broadcast to three channels is slow
    return blend(grey, image, factor)


def contrast(image: np.ndarray, factor: float) -> np.ndarray:
    """Blends with one grey level, min(H * W / 256, 255).

    The released code intends the mean grey level, but it sums the histogram's counts without their values, so the
    level is white from 256 x 256 pixels on. The released networks were trained with this, so it is kept.
    """
    grey = min(image.shape[0] * image.shape[1] // 256, 255)
    return _map(image, blend(np.full(256, grey), _LEVELS, factor))


def brightness(image: np.ndarray, factor: float) -> np.ndarray:
    """Factor 0 is black."""
    return _map(image, blend(np.zeros(256), _LEVELS, factor))


def sharpness(image: np.ndarray, factor: float) -> np.ndarray:
    """Factor 0 is Pillow's SMOOTH filter, truncated to integers; the border pixels are unchanged."""
    smooth = image.copy()
    # Integers until the division, so that an area of one colour is unchanged.
    sums = cv2.filter2D(image, cv2.CV_16S, np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]], np.float32))
    smooth[1:-1, 1:-1] = sums[1:-1, 1:-1] // 13
    return blend(smooth, image, factor)


def rotate(image: np.ndarray, degrees: float) -> np.ndarray:
    """Rotates counter-clockwise about the centre, as tfa's op does; the released docstring says clockwise."""
    angle = np.float32(math.radians(degrees))
    cosine, sine = np.cos(angle), np.sin(angle)
    right, bottom = np.float32(image.shape[1] - 1), np.float32(image.shape[0] - 1)
    x_offset = (right - (cosine * right - sine * bottom)) / 2
    y_offset = (bottom - (sine * right + cosine * bottom)) / 2
    return _affine(image, ((cosine, -sine, x_offset), (sine, cosine, y_offset)))


def shear_x(image: np.ndarray, level: float) -> np.ndarray:
    """Moves row y to the left by level * y."""
    return _affine(image, ((1, level, 0), (0, 1, 0)))


def shear_y(image: np.ndarray, level: float) -> np.ndarray:
    """Moves column x up by level * x."""
    return _affine(image, ((1, 0, 0), (level, 1, 0)))


def translate_x(image: np.ndarray, pixels: float) -> np.ndarray:
    """Moves the image to the left by `pixels`, independent of the image size."""
    return _affine(image, ((1, 0, pixels), (0, 1, 0)))


def translate_y(image: np.ndarray, pixels: float) -> np.ndarray:
    """Moves the image up by `pixels`."""
    return _affine(image, ((1, 0, 0), (0, 1, pixels)))


def cutout(image: np.ndarray, half_side: int, rng: np.random.Generator) -> np.ndarray:
    """Fills a square of side 2 * half_side around a random pixel; the square is clipped to the image."""
    square = _random_square(image, half_side, rng)
    image = image.copy()
    image[square] = FILL
    return image


def noise_cutout(image: np.ndarray, half_side: int, rng: np.random.Generator) -> np.ndarray:
    """Fills the same square with noise in [128, 255], which 'unit' maps to [0, 1]; see `preprocess_for_finetune`."""
    square = _random_square(image, half_side, rng)
    image = image.copy()
    image[square] = rng.integers(128, 256, image[square].shape, np.uint8)
    return image


def _random_square(image: np.ndarray, half_side: int, rng: np.random.Generator) -> tuple[slice, slice]:
    row, column = int(rng.integers(image.shape[0])), int(rng.integers(image.shape[1]))
    rows, columns = (slice(max(0, middle - half_side), middle + half_side) for middle in (row, column))
    return rows, columns


def _affine(image: np.ndarray, output_to_input: tuple[tuple[float, float, float], ...]) -> np.ndarray:
    """Sets each output pixel (x, y) to the input pixel nearest to output_to_input @ (x, y, 1).

    It computes in float32 and rounds halves away from zero, as TensorFlow does. cv2.warpAffine rounds halves to even
    numbers, which makes a difference in every tenth row of a shear by 0.3.
    """
    height, width = image.shape[:2]
    x, y = np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32)[:, None]

    def nearest(by_x: np.float32, by_y: np.float32, offset: np.float32) -> np.ndarray:
        # A coordinate that depends on one axis alone is computed once and broadcast along the other.
        position = sum(scale * axis for scale, axis in ((by_x, x), (by_y, y)) if scale) + offset
        position -= position == -0.5  # the only negative half that the next lines would round into the image
        position += np.float32(0.5)
        return np.broadcast_to(np.floor(position, out=position), (height, width)).copy()

    columns, rows = (nearest(*line) for line in np.asarray(output_to_input, np.float32))
    return cv2.remap(image, columns, rows, cv2.INTER_NEAREST, None, cv2.BORDER_CONSTANT, (FILL, FILL, FILL))


def _grey(image: np.ndarray) -> np.ndarray:
    """Luma uint8 [H, W] as in `tf.image.rgb_to_grayscale`, which truncates after scaling by 255.5 / 255."""
    weights = np.array([[0.2989, 0.587, 0.114]]) * (255.5 / 255)
    return cv2.transform(image.astype(np.float32), weights).astype(np.uint8)


def _map(image: np.ndarray, table: np.ndarray) -> np.ndarray:
    """table[image] for a table of 256 values from 0 to 255, truncated to integers."""
    return cv2.LUT(image, table.astype(np.uint8))


def _map_channels(image: np.ndarray, table: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Maps each channel by the table of 256 values that `table` computes from its histogram."""
    channels = cv2.split(image)
    histograms = (cv2.calcHist([channel], [0], None, [256], [0, 256]).ravel().astype(np.int64) for channel in channels)
    tables = [table(histogram).astype(np.uint8) for histogram in histograms]
    return cv2.LUT(image, np.stack(tables, axis=-1)[None])
