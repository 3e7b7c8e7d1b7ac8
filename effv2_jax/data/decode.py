"""Encoded images to uint8 RGB, whole or no more of them than a crop needs."""

import functools
import io
import os
from typing import Any

import cv2
import numpy as np
from PIL import Image

# Grain's threads run images in parallel; OpenCV's own would fight with them.
cv2.setNumThreads(1)

MAX_PIXELS = 2**28  # 16,384 x 16,384, 0.8 GB decoded: a picture that claims more is taken for a decompression bomb
# Pillow's own limit is a third of it. Above it warns, above the double it raises.
Image.MAX_IMAGE_PIXELS = MAX_PIXELS


Box = tuple[int, int, int, int]  # top, left, height, width
SCALES = (8, 4, 2)  # that a JPEG's transform can divide both sides by


class BrokenImage(ValueError):
    """Bytes that are no readable image."""


class Picture:
    """An image of which pixels are made once it is known which.

    Args:
      data: the bytes of a file, or uint8 [H, W, 3].

    Raises:
      BrokenImage: these bytes are no image.
    """

    def __init__(self, data: bytes | np.ndarray):
        self._data = data
        if isinstance(data, bytes):
            self._header = _header(data)
            self.width, self.height = self._header.size
        else:
            self.height, self.width, _ = data.shape

    def pixels(self) -> np.ndarray:
        """All of them, uint8 [H, W, 3]; see `decode`."""
        return decode(self._data) if isinstance(self._data, bytes) else self._data

    def crop(self, box: Box, least: int) -> np.ndarray:
        """Those of a box, uint8 [height, width, 3], for a picture of `least` pixels a side.

        Of a JPEG only what the box touches is transformed. Where both sides of the box are at least 2, 4 or 8 times
        `least` (0: never), its transform also divides them by that, which averages pixels; the box then moves to whole
        pixels of the smaller image.

        Raises:
          BrokenImage: with the reason.
        """
        top, left, height, width = box
        data = self._data
        if not isinstance(data, bytes) or not _is_plain_jpeg(data, self._header):
            return self.pixels()[top : top + height, left : left + width]
        scale = next((scale for scale in SCALES if least and min(height, width) >= scale * least), 1)
        if scale > 1:
            top, left, height, width = (round(value / scale) for value in box)
            height = min(height, -(-self.height // scale) - top)
            width = min(width, -(-self.width // scale) - left)
        tf = _tensorflow()
        try:
            # OpenCV would transform all of the image.
            return tf.raw_ops.DecodeAndCropJpeg(
                contents=data,
                crop_window=(top, left, height, width),
                channels=3,
                ratio=scale,
                dct_method="INTEGER_ACCURATE",
            ).numpy()
        except tf.errors.InvalidArgumentError as error:
            raise BrokenImage(error.message.partition(" [Op:")[0]) from None


def decode(data: bytes) -> np.ndarray:
    """Decodes JPEG, PNG, WebP, GIF or BMP of any colour type to uint8 [H, W, 3] in RGB.

    Grey becomes three equal channels; an alpha channel is dropped and of 16 bits the upper 8 are kept, as TensorFlow's
    `decode_image` with 3 channels does; the EXIF orientation is ignored, as there. Of an animation it is the first
    frame. OpenCV does most; Pillow does what OpenCV cannot read, CMYK, where OpenCV is a level too bright, and files
    without their end, of which OpenCV 4 would return a partly grey picture. Damage inside a file shows only where the
    format has checks.

    Raises:
      BrokenImage: with the reason.
    """
    header = _header(data)
    if header.mode != "CMYK" and _ends(data, header.format):
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION)
        if image is not None:
            return image
    return decode_with_pillow(header)


def _header(data: bytes) -> Image.Image:
    """The image with its size and mode known and no pixel decoded."""
    try:
        header = Image.open(io.BytesIO(data))
    except Image.DecompressionBombError as error:
        raise BrokenImage(str(error)) from None
    except Exception:
        raise BrokenImage("empty file" if not data else "not an image, or a damaged header") from None
    if header.width * header.height > MAX_PIXELS:
        raise BrokenImage(f"{header.width} x {header.height} pixels are more than {MAX_PIXELS}")
    return header


def _is_plain_jpeg(data: bytes, header: Image.Image) -> bool:
    return header.format == "JPEG" and header.mode in ("RGB", "L") and _ends(data, "JPEG")


@functools.cache
def _tensorflow() -> Any:
    """TensorFlow, for its JPEG decoder alone: seconds to import, so only where a JPEG is cropped."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # or it says that they are on, in every process
    import tensorflow as tf

    return tf


def _ends(data: bytes, format: str | None) -> bool:
    """Whether OpenCV decodes the format and the bytes end as it does; cameras may pad a JPEG after its end marker."""
    if format == "JPEG":
        return b"\xff\xd9" in data[-64:]
    if format == "PNG":
        # Pillow takes zeros in place of the second half for pixels.
        if b"IEND" not in data:
            raise BrokenImage("cut short: a PNG without its end")
        return True
    return format == "WEBP"  # Pillow has compared the length with the header's


def decode_with_pillow(image: Image.Image) -> np.ndarray:
    """Pillow's strict decoding to uint8 [H, W, 3]: a file cut short is an error."""
    if image.mode in ("I", "F"):
        raise BrokenImage(f"pixels of 32 bits (mode {image.mode}) have no known range")
    try:
        if image.mode.startswith("I;16"):
            return np.repeat((np.asarray(image) >> 8).astype(np.uint8)[..., None], 3, axis=2)
        return np.asarray(image.convert("RGB"))
    except Exception as error:
        raise BrokenImage(str(error) or type(error).__name__) from None
