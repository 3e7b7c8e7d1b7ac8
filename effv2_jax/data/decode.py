"""Encoded images to uint8 RGB."""

import io

import cv2
import numpy as np
from PIL import Image

# Grain's threads run images in parallel; OpenCV's own would fight with them.
cv2.setNumThreads(1)

MAX_PIXELS = 2**28  # 16,384 x 16,384, 0.8 GB decoded: a picture that claims more is taken for a decompression bomb
# Pillow's own limit is a third of it. Above it warns, above the double it raises.
Image.MAX_IMAGE_PIXELS = MAX_PIXELS


class BrokenImage(ValueError):
    """Bytes that are no readable image."""


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
    if header.width * header.height > MAX_PIXELS:
        raise BrokenImage(f"{header.width} x {header.height} pixels are more than {MAX_PIXELS}")
    if header.mode != "CMYK" and _ends(data, header.format):
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION)
        if image is not None:
            return image
    return decode_with_pillow(header)


def _header(data: bytes) -> Image.Image:
    """The image with its size and mode known and no pixel decoded."""
    try:
        return Image.open(io.BytesIO(data))
    except Image.DecompressionBombError as error:
        raise BrokenImage(str(error)) from None
    except Exception:
        raise BrokenImage("empty file" if not data else "not an image, or a damaged header") from None


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
