"""A tf.data pipeline equivalent to ours, for comparison: fused decode and crop, resize, flip, RandAugment.

RandAugment is written in TensorFlow operations, as in google/automl `efficientnetv2/autoaugment.py` at 6a54c87.
"""

import math
import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
import tensorflow as tf

FILL = 128


def batches(
    paths: Sequence[str],
    boxes_Nx4: np.ndarray,
    flips_N: np.ndarray,
    size: int,
    batch_size: int,
    magnitude: float | None,
) -> Iterator[np.ndarray]:
    """Batches uint8 [batch_size, size, size, 3] without end, of files with their crops and flips.

    Crops are (top, left, height, width). `magnitude` is that of RandAugment with two operations per image; None is
    without.
    """

    def example(path: Any, box: Any, flip: Any) -> Any:
        image = tf.image.decode_and_crop_jpeg(tf.io.read_file(path), box, channels=3)
        image = tf.cast(tf.image.resize(image, (size, size)), tf.uint8)
        image = tf.cond(flip, lambda: tf.image.flip_left_right(image), lambda: image)
        if magnitude is not None:
            for _ in range(2):
                image = _random_operation(image, magnitude / 10)
        return image

    dataset = tf.data.Dataset.from_tensor_slices((np.array(paths), boxes_Nx4, flips_N)).repeat()
    options = tf.data.Options()
    options.deterministic = False
    dataset = dataset.with_options(options).map(example, num_parallel_calls=tf.data.AUTOTUNE)
    return dataset.batch(batch_size, drop_remainder=True).prefetch(tf.data.AUTOTUNE).as_numpy_iterator()


def _random_operation(image: Any, level: float) -> Any:
    operations = _operations(level)
    number = tf.random.uniform([], 0, len(operations), tf.int32)
    return tf.switch_case(number, [lambda operation=operation: operation(image) for operation in operations])


def _operations(level: float) -> list[Any]:
    """The 16 operations at magnitude 10 * level."""
    enhance = 1.8 * level + 0.1

    def signed(value: float) -> Any:
        return tf.where(tf.random.uniform([]) < 0.5, -value, value)

    return [
        _autocontrast,
        _equalize,
        lambda image: 255 - image,
        lambda image: _rotate(image, signed(math.radians(30 * level))),
        lambda image: _posterize(image, min(int(4 * level), 8)),
        lambda image: tf.where(image < min(int(256 * level), 255), image, 255 - image),
        lambda image: _solarize_add(image, int(110 * level)),
        lambda image: _blend(tf.image.grayscale_to_rgb(tf.image.rgb_to_grayscale(image)), image, enhance),
        lambda image: _blend(tf.fill(tf.shape(image), _contrast_grey(image)), image, enhance),
        lambda image: _blend(tf.zeros_like(image), image, enhance),
        lambda image: _blend(_smooth(image), image, enhance),
        lambda image: _affine(image, [1.0, signed(0.3 * level), 0.0, 0.0, 1.0, 0.0]),
        lambda image: _affine(image, [1.0, 0.0, 0.0, signed(0.3 * level), 1.0, 0.0]),
        lambda image: _affine(image, [1.0, 0.0, signed(100 * level), 0.0, 1.0, 0.0]),
        lambda image: _affine(image, [1.0, 0.0, 0.0, 0.0, 1.0, signed(100 * level)]),
        lambda image: _cutout(image, int(40 * level)),
    ]


def _blend(degenerate: Any, image: Any, factor: float) -> Any:
    start, end = tf.cast(degenerate, tf.float32), tf.cast(image, tf.float32)
    return tf.cast(tf.clip_by_value(start + factor * (end - start), 0, 255), tf.uint8)


def _autocontrast(image: Any) -> Any:
    low = tf.cast(tf.reduce_min(image, (0, 1)), tf.float32)
    high = tf.cast(tf.reduce_max(image, (0, 1)), tf.float32)
    scale = 255 / tf.maximum(high - low, 1)
    stretched = tf.clip_by_value(tf.cast(image, tf.float32) * scale - low * scale, 0, 255)
    return tf.where(high > low, tf.cast(stretched, tf.uint8), image)


def _equalize(image: Any) -> Any:
    def channel(values: Any) -> Any:
        histogram = tf.histogram_fixed_width(tf.cast(values, tf.int32), [0, 255], nbins=256)
        nonzero = tf.gather(histogram, tf.where(histogram != 0)[:, 0])
        step = (tf.reduce_sum(nonzero) - nonzero[-1]) // 255
        table = (tf.cumsum(histogram) + step // 2) // tf.maximum(step, 1)
        table = tf.clip_by_value(tf.concat([[0], table[:-1]], 0), 0, 255)
        return tf.cond(
            step == 0, lambda: values, lambda: tf.cast(tf.gather(table, tf.cast(values, tf.int32)), tf.uint8)
        )

    return tf.stack([channel(image[..., number]) for number in range(3)], -1)


def _posterize(image: Any, bits: int) -> Any:
    shift = tf.constant(min(8 - bits, 7), tf.uint8)
    return tf.bitwise.left_shift(tf.bitwise.right_shift(image, shift), shift)


def _solarize_add(image: Any, addition: int) -> Any:
    added = tf.cast(tf.clip_by_value(tf.cast(image, tf.int32) + addition, 0, 255), tf.uint8)
    return tf.where(image < 128, added, image)


def _contrast_grey(image: Any) -> Any:
    return tf.cast(tf.minimum(tf.size(image) // 3 // 256, 255), tf.uint8)


def _smooth(image: Any) -> Any:
    kernel = tf.tile(tf.constant([[1, 1, 1], [1, 5, 1], [1, 1, 1]], tf.float32)[..., None, None] / 13, [1, 1, 3, 1])
    inner = tf.nn.depthwise_conv2d(tf.cast(image, tf.float32)[None], kernel, [1, 1, 1, 1], "VALID")[0]
    inner = tf.cast(tf.clip_by_value(inner, 0, 255), tf.uint8)
    border = [[1, 1], [1, 1], [0, 0]]
    return tf.where(tf.pad(tf.ones_like(inner), border) == 1, tf.pad(inner, border), image)


def _affine(image: Any, output_to_input: Sequence[Any]) -> Any:
    transform = tf.stack([*(tf.cast(value, tf.float32) for value in output_to_input), 0.0, 0.0])[None]
    # The fourth channel is 0 where a pixel comes from outside the image.
    with_mask = tf.concat([image, tf.fill(tf.shape(image[..., :1]), tf.constant(255, tf.uint8))], -1)
    moved = tf.raw_ops.ImageProjectiveTransformV3(
        images=with_mask[None],
        transforms=transform,
        output_shape=tf.shape(image)[:2],
        fill_value=0.0,
        interpolation="NEAREST",
        fill_mode="CONSTANT",
    )[0]
    return tf.where(moved[..., 3:] == 0, tf.constant(FILL, tf.uint8), moved[..., :3])


def _rotate(image: Any, radians: Any) -> Any:
    cosine, sine = tf.cos(radians), tf.sin(radians)
    bottom, right = (tf.cast(tf.shape(image)[axis] - 1, tf.float32) for axis in (0, 1))
    x_offset = (right - (cosine * right - sine * bottom)) / 2
    y_offset = (bottom - (sine * right + cosine * bottom)) / 2
    return _affine(image, [cosine, -sine, x_offset, sine, cosine, y_offset])


def _cutout(image: Any, half_side: int) -> Any:
    height, width = tf.shape(image)[0], tf.shape(image)[1]
    row = tf.random.uniform([], 0, height, tf.int32)
    column = tf.random.uniform([], 0, width, tf.int32)
    inside_rows = tf.abs(tf.range(height) * 2 + 1 - 2 * row) < 2 * half_side
    inside_columns = tf.abs(tf.range(width) * 2 + 1 - 2 * column) < 2 * half_side
    square = inside_rows[:, None, None] & inside_columns[None, :, None]
    return tf.where(square, tf.constant(FILL, tf.uint8), image)
